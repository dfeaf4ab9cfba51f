//! A bare-metal guest for tests and benches: boots by PVH on any KVM, runs in ring 3, polls its devices.
//!
//! In: the PVH command line (see `config`), UDP requests (see `wire` in the library).
//! Out: UDP replies, disk blocks, and on the serial line `ready`, violations and panics.

#![no_std]
#![no_main]

mod boot;
mod card;
mod config;
mod disk;
mod hostile;
mod machine;
mod mem;
mod net;
mod pages;
mod pci;
mod service;
mod vcpus;
mod virtio;

use core::panic::PanicInfo;

use pollux_guest::pattern::mix;

use config::{Config, Pace};
use disk::Disk;
use machine::{CLOCK, Memory, StartInfo};
use net::Net;
use pages::WorkingSet;
use service::{Afterwards, Service};
use vcpus::Background;

/// Entered from `boot` on every vCPU.
#[unsafe(no_mangle)]
extern "C" fn ring3_main(start_info: u64, vcpu: u64) -> ! {
    if vcpu != 0 {
        vcpus::run(vcpu as usize);
    }
    // SAFETY: first thing on vCPU 0, with what the boot loader passed.
    let info = unsafe {
        machine::init();
        StartInfo::parse(start_info)
    };
    let config = Config::parse(info.command_line);
    let tsc_khz = machine::tsc_khz();
    let boot = mix(machine::tsc());
    println!("pollux-guest: boot {boot:016x}, RAM to {:#x}, TSC {tsc_khz} kHz, {:?}", info.ram_end, config);
    let mut memory = Memory::new(info.ram_end);
    if config.spoil {
        virtio::break_all(&mut memory);
    }
    if let Some(numbers) = config.hostile {
        hostile::run(&mut memory, &config, numbers, tsc_khz, info.ram_end);
        machine::power_off();
    }
    let now = micros(machine::tsc(), tsc_khz);
    let net = Net::find(&mut memory, &config, boot, now);
    let disk = if config.disk { Disk::find(&mut memory, config.disk_slots, boot, config.bare) } else { None };
    assert!(disk.is_some() || !config.disk, "no disk");
    if let Some(net) = &net {
        println!("net: {:02x?} {}", net.mac(), config.ip);
    }
    if let Some(disk) = &disk {
        println!("disk: {} slots", disk.slots());
    }
    let mut high = config.high.then(|| memory.above_4g(info.high, WorkingSet::size(config.pages)));
    let set = WorkingSet::new(high.as_mut().unwrap_or(&mut memory), config.pages, config.fill, 0);
    let background = Background::start(&mut memory, &config, tsc_khz);
    println!("ready");
    CLOCK.start(tsc_khz);
    serve(&config, net, Service::new(set, disk, background, tsc_khz, boot), tsc_khz)
}

/// Ticks of the time stamp counter as time.
fn micros(tsc: u64, tsc_khz: u64) -> u64 {
    tsc / tsc_khz.div_ceil(1000)
}

fn serve(config: &Config, mut net: Option<Net>, mut service: Service, tsc_khz: u64) -> ! {
    let mut disk_pace = Pace::new(config.disk_rate, tsc_khz, machine::tsc());
    loop {
        let now = CLOCK.tick();
        CLOCK.nanoseconds();
        service.ticks += 1;
        if let Some(net) = &mut net {
            net.poll(micros(now, tsc_khz), &mut |datagram, out| service.handle(datagram, out));
            service.stream_violations = net.violations;
            if service.afterwards != Afterwards::GoOn {
                // The reply is on its way when the device has taken it; a frozen one does not keep us.
                let deadline = machine::tsc() + 10_000 * tsc_khz;
                net.drain(|| machine::tsc() > deadline);
            }
        }
        match service.afterwards {
            Afterwards::GoOn => {}
            Afterwards::PowerOff => machine::power_off(),
            Afterwards::Reset(how) => machine::reset(how),
        }
        if let Some(disk) = &mut service.disk {
            disk.poll();
            if disk_pace.due(now) {
                disk.write_next();
            }
        }
        service.background.turn(now);
        service.set.check_next();
    }
}

/// Entered from `boot`, in ring 3, after an exception.
#[unsafe(no_mangle)]
extern "C" fn exception_report(vector: u64, error: u64, rip: u64, cr2: u64, rsp: u64) -> ! {
    panic!("exception {vector} error {error:#x} rip {rip:#x} cr2 {cr2:#x} rsp {rsp:#x}")
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    println!("{info}");
    machine::power_off()
}
