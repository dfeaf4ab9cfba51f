//! The guest's control queue: how many queue pairs it wants to use, and nothing else.
//!
//! There is one only with several queue pairs. Every other command is refused, which drivers take as "not
//! supported".

use device_api::counters::NetCounters;
use device_kit::{Memory, Vring};
use virtio_bindings::virtio_net::{VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK};
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::Driver;
use crate::output::CHUNK;
use crate::ring::{self, Malformed};

/// Class, command, and two bytes of argument.
const COMMAND_LEN: usize = 4;

/// Answers some commands. Returns how many, and whether there may be more.
pub fn serve(vrings: &[Vring], driver: &mut Driver, counters: &NetCounters) -> (usize, bool) {
    let Some(handle) = vrings.get(driver.control_queue()) else { return (0, false) };
    let Some(mut vring) = handle.to_serve() else { return (0, false) };
    let loaded = driver.memory();
    let memory: &Memory = &loaded;
    let queue = vring.get_queue_mut();
    let before = queue.next_used();
    let mut used = Vec::with_capacity(CHUNK);
    let mut broken = false;
    for _ in 0..CHUNK {
        let Ok(chain) = ring::next(queue, memory) else {
            broken = true;
            break;
        };
        let Some(chain) = chain else { break };
        let head = chain.head_index();
        let written = answer(chain, memory, driver).unwrap_or_else(|Malformed| {
            counters.malformed();
            0
        });
        used.push((head, written));
    }
    let finished = ring::publish(queue, memory, &used).and_then(|()| {
        Ok((ring::wants_signal(queue, memory, before)?, ring::enable_kick(queue, memory, queue.next_avail())?))
    });
    let (signal, more) = match finished {
        Ok((signal, more)) => (signal, more && !broken),
        Err(_) => (false, false),
    };
    if broken || finished.is_err() {
        counters.malformed();
        handle.set_broken();
    }
    if signal && let Err(e) = vring.signal_used_queue() {
        host_kit::warn_limited!("the guest cannot be interrupted: {e}");
    }
    (used.len(), more)
}

fn answer(chain: DescriptorChain<&Memory>, memory: &Memory, driver: &mut Driver) -> Result<u32, Malformed> {
    let (mut command, mut len, mut status) = ([0; COMMAND_LEN], 0, None::<GuestAddress>);
    for descriptor in chain {
        if descriptor.is_write_only() {
            if descriptor.len() > 0 {
                status.get_or_insert(descriptor.addr());
            }
            continue;
        }
        let take = (descriptor.len() as usize).min(COMMAND_LEN - len);
        memory.read_slice(&mut command[len..len + take], descriptor.addr()).map_err(|_| Malformed)?;
        len += take;
    }
    let status = status.ok_or(Malformed)?;
    let pairs = u16::from_le_bytes([command[2], command[3]]);
    let set_pairs = len == COMMAND_LEN
        && u32::from(command[0]) == VIRTIO_NET_CTRL_MQ
        && u32::from(command[1]) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
    let ok = set_pairs && driver.has_pairs(pairs);
    let answer = if ok { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
    memory.write_slice(&[answer as u8], status).map_err(|_| Malformed)?;
    if ok {
        driver.set_pairs(pairs);
    }
    Ok(1)
}
