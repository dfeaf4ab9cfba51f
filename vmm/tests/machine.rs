//! The machine with tiny guests on the real /dev/kvm: exits, pause and capture, save and load, reset, power.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod tiny;

use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Select, bounded};
use ft::guest::Guest;
use ft_wire::device_ctl::InFlight;
use ft_wire::state::Position;
use pollux_vmm::contract::VmEvent;
use pollux_vmm::ft_adapter::guest::GuestAdapter;
use pollux_vmm::machine::cpu::{Capture, GuestEvent, PausedWork, Task, WorkerPool};
use pollux_vmm::machine::memory::dirty::{DirtySet, Watch};
use pollux_vmm::vm::{NotHere, VmError};
use tiny::{COUNTER, Code, Tiny};
use vm_memory::{Bytes, GuestAddress};

/// `inc dword [COUNTER]; jmp` to it.
fn count_forever(code: Code) -> Code {
    code.raw(&[0xff, 0x05]).raw(&COUNTER.to_le_bytes()).raw(&[0xeb, 0xf8])
}

/// Counts until the low byte of the counter becomes 0, prints a dot, and again. So pauses hit both port
/// writes and memory.
fn count_and_print() -> Code {
    Code::default()
        .raw(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'.'])
        .raw(&[0xfe, 0x05])
        .raw(&COUNTER.to_le_bytes())
        .raw(&[0x75, 0xf8, 0xff, 0x05])
        .raw(&(COUNTER + 4).to_le_bytes())
        .raw(&[0xee, 0xeb, 0xef])
}

fn counter(tiny: &Tiny, offset: u32) -> u32 {
    tiny.vm.memory().ram().read_obj(GuestAddress((COUNTER + offset).into())).unwrap()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed().as_secs() < 20, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_guest_prints_and_powers_off() {
    let mut tiny = Tiny::new(Code::default().print("hello\n").power_off(), 1);
    tiny.vm.boot().unwrap();
    assert_eq!(tiny.event(), GuestEvent::Shutdown);
    assert_eq!(tiny.printed(), "hello\n");
}

#[test]
fn string_output_arrives_item_by_item() {
    // cld; mov esi, text; mov ecx, 5; mov dx, 0x3f8; rep outsb
    let text = b"hello";
    let code = Code::default().raw(&[0xfc, 0xbe]).raw(&(tiny::CODE + 0x100).to_le_bytes()).raw(&[
        0xb9,
        text.len() as u8,
        0,
        0,
        0,
        0x66,
        0xba,
        0xf8,
        0x03,
        0xf3,
        0x6e,
    ]);
    let mut code = code.power_off();
    code.0.resize(0x100, 0x90);
    let mut tiny = Tiny::new(code.raw(text), 1);
    tiny.vm.boot().unwrap();
    assert_eq!(tiny.event(), GuestEvent::Shutdown);
    assert_eq!(tiny.printed(), "hello");
}

#[test]
fn a_reset_boots_again_with_the_same_memory() {
    // The counter survives a reset: the first time round the guest resets, the second time it powers off.
    let again = |reset: Code| {
        let len = reset.0.len() as u8;
        Code::default()
            .print("boot ")
            .raw(&[0xff, 0x05])
            .raw(&COUNTER.to_le_bytes())
            .raw(&[0x83, 0x3d])
            .raw(&COUNTER.to_le_bytes())
            .raw(&[2, 0x73, len])
            .raw(&reset.0)
            .power_off()
    };
    let ways = [
        Code::default().out(0x600, 1).halt(),
        Code::default().out(0x64, 0xfe).halt(),
        // Far jump to the code at the reset vector, which works in any mode.
        Code::default().raw(&[0xea, 0xf0, 0xff, 0x0f, 0, 0x10, 0]).halt(),
        // ud2 with an empty interrupt table: a triple fault.
        Code::default().raw(&[0x0f, 0x0b]).halt(),
    ];
    for way in ways {
        let mut tiny = Tiny::new(again(way), 2);
        tiny.vm.boot().unwrap();
        assert_eq!(tiny.event(), GuestEvent::Reset);
        tiny.vm.reset().unwrap();
        assert_eq!(tiny.event(), GuestEvent::Shutdown);
        assert_eq!(tiny.printed(), "boot boot ");
    }
}

#[test]
fn a_paused_guest_stands_still_and_pauses_nest() {
    let mut tiny = Tiny::new(count_forever(Code::default()), 3);
    tiny.vm.boot().unwrap();
    wait_for("guest does not count", || counter(&tiny, 0) > 0);
    tiny.vm.pause().unwrap();
    tiny.vm.cpus().pause(Capture::Yes).unwrap();
    let stopped = counter(&tiny, 0);
    tiny.vm.cpus().resume();
    for _ in 0..1000 {
        std::thread::yield_now();
    }
    assert_eq!(counter(&tiny, 0), stopped);
    tiny.vm.resume().unwrap();
    wait_for("guest does not go on", || counter(&tiny, 0) != stopped);
}

/// Counts how often it is done, with a task for each thread.
#[derive(Default)]
struct Work {
    done: u32,
    /// Tasks that were handed out: one for each vCPU, and perhaps one for whoever waits.
    handed_out: u32,
    tasks: Arc<AtomicU32>,
    stays: bool,
}

impl PausedWork for Work {
    fn run(&mut self, pool: &WorkerPool<'_>) -> bool {
        self.done += 1;
        assert!((3..=4).contains(&pool.size()), "{} threads", pool.size());
        self.handed_out += pool.size() as u32;
        pool.share((0..pool.size()).map(|_| -> Task {
            let tasks = self.tasks.clone();
            Box::new(move || _ = tasks.fetch_add(1, Ordering::SeqCst))
        }));
        !self.stays
    }
}

#[test]
fn a_checkpoint_is_taken_once_whoever_else_pauses_meanwhile() {
    let mut tiny = Tiny::new(count_forever(Code::default()), 3);
    tiny.vm.boot().unwrap();
    let (work, cpus) = (Arc::new(Mutex::new(Work::default())), tiny.vm.cpus().clone());
    for taken in 1..=200 {
        let before = counter(&tiny, 0);
        cpus.stop_for(work.clone());
        cpus.pause(Capture::No).unwrap();
        cpus.resume();
        cpus.checkpoint().unwrap();
        assert_eq!((work.lock().unwrap().done, cpus.is_paused()), (taken, false));
        wait_for("guest does not go on", || counter(&tiny, 0) != before);
        cpus.stop_for(work.clone());
        cpus.call_off();
        assert_eq!((work.lock().unwrap().done, cpus.is_paused()), (taken, false));
    }
    let handed_out = work.lock().unwrap().handed_out;
    wait_for("tasks are left over", || work.lock().unwrap().tasks.load(Ordering::SeqCst) == handed_out);
    work.lock().unwrap().stays = true;
    cpus.stop_for(work.clone());
    cpus.checkpoint().unwrap();
    assert!(cpus.is_paused());
    let stopped = counter(&tiny, 0);
    cpus.resume();
    wait_for("guest does not go on", || counter(&tiny, 0) != stopped);
}

#[test]
fn thousands_of_pauses_lose_no_port_write() {
    let mut tiny = Tiny::new(count_and_print(), 1);
    tiny.vm.boot().unwrap();
    for _ in 0..3000 {
        tiny.vm.cpus().pause(Capture::Yes).unwrap();
        tiny.vm.cpus().resume();
    }
    wait_for("guest does not print", || counter(&tiny, 4) > 100);
    tiny.vm.pause().unwrap();
    // One dot for each round; the last round's may still be to come.
    let (rounds, dots) = (counter(&tiny, 4) as usize, tiny.printed().len());
    assert!(dots == rounds || dots + 1 == rounds, "{rounds} rounds, {dots} dots");
}

/// Copies what is not zero.
fn copy_memory(from: &Tiny, to: &Tiny) {
    let (from, to) = (from.vm.memory_view(), to.vm.memory_view());
    let mut page = vec![0; 4096];
    for gfn in from.ranges().flat_map(|(first, pages)| first..first + pages) {
        from.copy_out(&[gfn], &mut page);
        if page.iter().any(|byte| *byte != 0) {
            assert!(to.write_page(gfn, &page));
        }
    }
}

#[test]
fn the_pm_timer_goes_on_with_the_guests_clock_on_another_host() {
    // mov dx, 0x608; in eax, dx; mov [COUNTER], eax; jmp
    let code =
        Code::default().raw(&[0x66, 0xba, 0x08, 0x06, 0xed, 0xa3]).raw(&COUNTER.to_le_bytes()).raw(&[0xeb, 0xf8]);
    let mut old = Tiny::new(code, 1);
    old.vm.boot().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    old.vm.cpus().pause(Capture::Yes).unwrap();
    let (mut state, last) = (Vec::new(), counter(&old, 0));
    old.vm.save(&mut state).unwrap();
    assert!(last > 100_000, "{last}");
    // This VM is younger, so its own timer is behind.
    let mut new = Tiny::new(Code::default().halt(), 1);
    copy_memory(&old, &new);
    new.vm.load(&state).unwrap();
    new.vm.activate_restored().unwrap();
    new.vm.start_restored().unwrap();
    wait_for("guest does not go on", || counter(&new, 0) != last);
    let passed = counter(&new, 0).wrapping_sub(last);
    assert!(passed < 20 * 3_579_545, "{last} and then {passed} ticks more");
}

#[test]
fn a_saved_guest_goes_on_in_another_vm() {
    let mut old = Tiny::new(count_and_print(), 2);
    old.vm.boot().unwrap();
    wait_for("guest does not print", || counter(&old, 4) > 10);
    old.vm.cpus().pause(Capture::Yes).unwrap();
    let mut state = Vec::new();
    old.vm.save(&mut state).unwrap();

    let mut new = Tiny::new(Code::default().halt(), 2);
    copy_memory(&old, &new);
    new.vm.load(&state).unwrap();
    // What was loaded is what is captured again, except for time, which goes on.
    let rounds = counter(&new, 4);
    new.vm.cpus().pause(Capture::Yes).unwrap();
    let mut again = Vec::new();
    new.vm.save(&mut again).unwrap();
    new.vm.cpus().resume();
    assert_eq!(state.len(), again.len());
    let differing = state.iter().zip(&again).filter(|(a, b)| a != b).count();
    assert!(differing < 200, "{differing} of {} bytes differ", state.len());
    new.vm.activate_restored().unwrap();
    new.vm.start_restored().unwrap();
    wait_for("guest does not go on", || counter(&new, 4) > rounds + 10);
    new.vm.pause().unwrap();
    let (rounds, dots) = ((counter(&new, 4) - rounds) as usize, new.printed().len());
    assert!(dots == rounds || dots == rounds + 1 || dots + 1 == rounds, "{rounds} rounds, {dots} dots");
}

/// The state of a VM whose guest has done something that it does once, and nobody has dealt with that.
fn after_a_final_event(way: Code, event: &GuestEvent) -> (Tiny, Vec<u8>) {
    let mut tiny = Tiny::new(way.halt(), 2);
    tiny.vm.boot().unwrap();
    assert_eq!(tiny.event(), *event);
    tiny.vm.cpus().pause(Capture::Yes).unwrap();
    let mut state = Vec::new();
    tiny.vm.save(&mut state).unwrap();
    (tiny, state)
}

#[test]
fn a_power_off_or_reset_that_nobody_has_dealt_with_is_reported_where_the_vm_goes_on() {
    let ways = [
        (Code::default().out(0x600, 5 << 2 | 1 << 5), GuestEvent::Shutdown),
        (Code::default().out(0x600, 1), GuestEvent::Reset),
        (Code::default().out(0x64, 0xfe), GuestEvent::Reset),
        // ud2 with an empty interrupt table: a triple fault.
        (Code::default().raw(&[0x0f, 0x0b]), GuestEvent::Reset),
    ];
    for (way, event) in ways {
        let (old, state) = after_a_final_event(way, &event);
        let mut new = Tiny::new(Code::default().print("again").halt(), 2);
        copy_memory(&old, &new);
        let (events, told) = bounded(1);
        let mut adapter = GuestAdapter::new(&new.vm, events);
        adapter.load(&state).unwrap();
        adapter.activate().unwrap();
        adapter.start().unwrap();
        assert!(matches!(told.recv().unwrap(), VmEvent::TakenOver { paused: false }));
        assert_eq!(new.event(), event);
        new.vm.taken_over().unwrap();
        new.vm.reset().unwrap();
        wait_for("guest does not boot again", || new.printed() == "again");
        assert!(new.events.try_recv().is_err());
    }
}

#[test]
fn what_the_guest_writes_is_harvested_once() {
    let code = count_forever(Code::default().store(COUNTER + 0x5000, 1));
    let mut tiny = Tiny::new(code, 1);
    let mut set = DirtySet::new(tiny.vm.memory());
    tiny.vm.dirty().lock().unwrap().start().unwrap();
    tiny.vm.boot().unwrap();
    wait_for("guest does not count", || counter(&tiny, 0) > 0);
    tiny.vm.cpus().pause(Capture::Yes).unwrap();
    let page = u64::from(COUNTER) / 4096;
    let mut harvest = |tiny: &Tiny| {
        tiny.vm.dirty().lock().unwrap().harvest(&mut set, Watch::All, &mut |_| ()).unwrap();
        (set.contains(page), set.contains(page + 5), set.contains(page + 1))
    };
    assert_eq!(harvest(&tiny), (true, true, false));
    assert_eq!(harvest(&tiny), (false, false, false));
    let before = counter(&tiny, 0);
    tiny.vm.cpus().resume();
    wait_for("guest does not count", || counter(&tiny, 0) != before);
    tiny.vm.cpus().pause(Capture::No).unwrap();
    assert_eq!(harvest(&tiny), (true, false, false));
}

#[test]
fn a_queue_that_is_not_set_up_has_nothing_in_flight_in_a_checkpoint() {
    let tiny = Tiny::new(Code::default().halt(), 1);
    let mut devices = tiny.vm.devices().lock().unwrap();
    let id = devices.ids().next().unwrap().to_owned();
    let in_flight = vec![InFlight { queue: 0, head: 3 }];
    let mut position = Position { id, queues: Vec::new(), in_flight, idle: true };
    devices.set_position(&mut position);
    assert_eq!(position.in_flight, []);
}

#[test]
fn a_vm_whose_reset_has_failed_is_in_no_checkpoint() {
    let mut tiny = Tiny::new(Code::default().halt(), 1);
    tiny.vm.boot().unwrap();
    let kernel = tiny.dir.path().join("kernel");
    let image = std::fs::read(&kernel).unwrap();
    File::options().write(true).open(&kernel).unwrap().set_len(70).unwrap();
    assert!(tiny.vm.reset().is_err());
    assert!(tiny.vm.parts().gate.try_enter().is_none());
    std::fs::write(&kernel, image).unwrap();
    tiny.vm.reset().unwrap();
    assert!(tiny.vm.parts().gate.try_enter().is_some());
}

#[test]
fn the_power_button_of_a_vm_that_is_about_to_leave_is_not_there() {
    let mut tiny = Tiny::new(Code::default().halt(), 1);
    tiny.vm.boot().unwrap();
    tiny.vm.parts().gate.leaving();
    assert!(matches!(tiny.vm.power_button(), Err(VmError::NotHere(NotHere::Leaving))));
    tiny.vm.parts().gate.stays();
    tiny.vm.power_button().unwrap();
}

#[test]
fn the_power_button_interrupts_a_halted_guest() {
    // An interrupt table with one gate for vector 0x30, whose handler prints and powers off; LAPIC and IOAPIC
    // pin 13 enabled.
    const IDT: u32 = COUNTER;
    const HANDLER: u32 = tiny::CODE + 0x200;
    let gate = [HANDLER & 0xffff | 0x10 << 16, HANDLER & 0xffff_0000 | 0x8e00];
    let mut code = Code::default()
        .store(IDT + 0x30 * 8, gate[0])
        .store(IDT + 0x30 * 8 + 4, gate[1])
        .store(IDT + 0x1000, 0x7ff | IDT << 16)
        .store(IDT + 0x1004, IDT >> 16)
        .raw(&[0x0f, 0x01, 0x1d])
        .raw(&(IDT + 0x1000).to_le_bytes())
        .raw(&[0xbc])
        .raw(&(COUNTER + 0x3000).to_le_bytes())
        .store(0xfee0_00f0, 0x1ff)
        .store(0xfec0_0000, 0x10 + 2 * 13 + 1)
        .store(0xfec0_0010, 0)
        .store(0xfec0_0000, 0x10 + 2 * 13)
        .store(0xfec0_0010, 0x30)
        .print("ready")
        .raw(&[0xfb])
        .halt();
    assert!(code.0.len() <= 0x200);
    code.0.resize(0x200, 0x90);
    let code = code.print(" pressed").power_off();
    let mut tiny = Tiny::new(code, 1);
    tiny.vm.boot().unwrap();
    wait_for("guest is not ready", || tiny.printed() == "ready");
    tiny.vm.power_button().unwrap();
    assert_eq!(tiny.event(), GuestEvent::Shutdown);
    assert_eq!(tiny.printed(), "ready pressed");
}

#[test]
fn a_takeover_is_told_before_the_guest_runs() {
    // Until the counter is no longer 0: cmp dword [COUNTER], 0; je to it. Then it resets.
    let wait = Code::default().raw(&[0x83, 0x3d]).raw(&COUNTER.to_le_bytes()).raw(&[0, 0x74, 0xf7]);
    let mut tiny = Tiny::new(wait.out(0x64, 0xfe).halt(), 1);
    tiny.vm.boot().unwrap();
    tiny.vm.cpus().pause(Capture::No).unwrap();
    tiny.vm.memory().ram().write_obj(1_u32, GuestAddress(COUNTER.into())).unwrap();
    // Whoever tells something waits until it is heard.
    let (events, told) = bounded(0);
    let mut adapter = GuestAdapter::new(&tiny.vm, events);
    std::thread::scope(|scope| {
        let start = scope.spawn(move || adapter.start());
        let mut hears = Select::new();
        hears.recv(&told);
        hears.ready();
        assert!(tiny.vm.cpus().is_paused(), "the guest may end its run before anybody knows that it runs here");
        assert!(matches!(told.recv().unwrap(), VmEvent::TakenOver { paused: false }));
        start.join().unwrap().unwrap();
    });
    assert_eq!(tiny.event(), GuestEvent::Reset);
}
