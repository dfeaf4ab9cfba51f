//! Whether the standby's VM is built like the primary's, in all that loading a checkpoint relies on: asked
//! before anything is copied.

use crate::guest::{Shape, VirtioShape};

/// How the standby's VM (`mine`) is not like the primary's: all differences, each with its way out.
pub(crate) fn differences(mine: &Shape, theirs: &Shape) -> Vec<String> {
    let mut found = Differences::default();
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    found.compare("memory size", mib(mine.memory), mib(theirs.memory));
    found.compare("number of vCPUs", mine.vcpus, theirs.vcpus);
    let port = |present| if present { "one" } else { "none" };
    found.compare("serial port", port(mine.serial), port(theirs.serial));
    found.compare("number of disks", mine.disks.len(), theirs.disks.len());
    found.compare("number of network cards", mine.nets.len(), theirs.nets.len());
    for (mine, theirs) in mine.disks.iter().zip(&theirs.disks) {
        let name = |what| format!("{what} of disk {}", theirs.id);
        found.compare("disk id", &mine.id, &theirs.id);
        found.compare(&name("size"), format!("{} bytes", mine.size), format!("{} bytes", theirs.size));
        found.compare(&name("read-only flag"), mine.read_only, theirs.read_only);
        found.compare(&name("serial"), format!("{:?}", mine.serial), format!("{:?}", theirs.serial));
        found.compare(&name("number of queues"), mine.queues, theirs.queues);
        let what = name("block size (direct=on has that of the storage)");
        found.compare(&what, format!("{} bytes", mine.block_size), format!("{} bytes", theirs.block_size));
        found.virtio(&format!("disk {}", theirs.id), &mine.virtio, &theirs.virtio);
    }
    for (mine, theirs) in mine.nets.iter().zip(&theirs.nets) {
        let name = format!("network card {}", theirs.id);
        found.compare("network card id", &mine.id, &theirs.id);
        found.compare(&format!("number of queues of {name}"), mine.queues, theirs.queues);
        found.compare(&format!("MTU of {name}"), mine.mtu, theirs.mtu);
        found.virtio(&name, &mine.virtio, &theirs.virtio);
    }
    found.reasons
}

#[derive(Default)]
struct Differences {
    reasons: Vec<String>,
}

impl Differences {
    fn compare<T: ToString>(&mut self, what: &str, mine: T, theirs: T) {
        let (mine, theirs) = (mine.to_string(), theirs.to_string());
        if mine != theirs {
            self.reasons.push(format!("{what}: {mine} here, {theirs} at the primary: start the standby with the same"));
        }
    }

    fn virtio(&mut self, name: &str, mine: &VirtioShape, theirs: &VirtioShape) {
        self.compare(&format!("PCI slot of {name}"), mine.slot, theirs.slot);
        // Another number of queues has been complained about already.
        if mine.queue_sizes.len() == theirs.queue_sizes.len() {
            self.compare(
                &format!("queue sizes (queue_size=) of {name}"),
                sizes(&mine.queue_sizes),
                sizes(&theirs.queue_sizes),
            );
        }
        let lacking = theirs.features & !mine.features;
        if lacking != 0 {
            self.reasons.push(format!(
                "{name}: the guest may use features {lacking:#x} at the primary that are missing here: start the standby with \
                 the same options, on a host whose kernel and file systems can do the same"
            ));
        }
    }
}

/// One number if all are the same.
fn sizes(all: &[u16]) -> String {
    let mut each: Vec<_> = all.iter().map(u16::to_string).collect();
    each.dedup();
    each.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{DiskShape, NetShape};

    fn shape() -> Shape {
        let virtio = VirtioShape { slot: 1, queue_sizes: vec![128], features: 0b111 };
        let disk = DiskShape {
            id: "_disk0".to_owned(),
            size: 1 << 30,
            block_size: 512,
            queues: 1,
            virtio: virtio.clone(),
            ..DiskShape::default()
        };
        let virtio = VirtioShape { slot: 2, queue_sizes: vec![256, 256, 64], ..virtio };
        let net = NetShape { id: "_net1".to_owned(), mtu: 1500, queues: 2, virtio, ..NetShape::default() };
        Shape { memory: 512 << 20, vcpus: 2, serial: true, disks: vec![disk], nets: vec![net], ..Shape::default() }
    }

    #[test]
    fn every_difference_is_named_at_once() {
        assert!(differences(&shape(), &shape()).is_empty());
        let mut small = shape();
        (small.memory, small.vcpus, small.disks[0].size) = (256 << 20, 1, 1 << 20);
        let reasons = differences(&small, &shape());
        assert_eq!(reasons.len(), 3, "{reasons:?}");
        assert!(reasons[0].contains("256 MiB here, 512 MiB at the primary"), "{reasons:?}");
        assert!(reasons[2].contains("_disk0"), "{reasons:?}");
    }

    #[test]
    fn what_the_guest_was_told_of_its_devices_holds_here_too() {
        let mut other = shape();
        (other.disks[0].block_size, other.nets[0].mtu) = (4096, 9000);
        let reasons = differences(&other, &shape());
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons[0].contains("4096 bytes here, 512 bytes at the primary"), "{reasons:?}");
        assert!(reasons[1].contains("MTU of network card _net1: 9000 here, 1500 at the primary"), "{reasons:?}");
    }

    #[test]
    fn what_would_keep_a_checkpoint_from_being_loaded_is_found_before() {
        type Change = fn(&mut Shape);
        let changes: [(Change, &str); 5] = [
            (|mine| mine.serial = false, "serial port: none here, one at the primary"),
            (
                |mine| mine.nets[0].virtio.queue_sizes[1] = 512,
                "queue sizes (queue_size=) of network card _net1: 256, 512, 64 here, 256, 64 at",
            ),
            (
                |mine| mine.disks[0].virtio.queue_sizes[0] = 64,
                "queue sizes (queue_size=) of disk _disk0: 64 here, 128 at the primary",
            ),
            (|mine| mine.disks[0].virtio.slot = 9, "PCI slot of disk _disk0: 9 here, 1 at the primary"),
            (|mine| mine.nets[0].virtio.features = 0b1011, "network card _net1: the guest may use features 0x4 at"),
        ];
        for (change, expected) in changes {
            let mut mine = shape();
            change(&mut mine);
            let reasons = differences(&mine, &shape());
            assert!(matches!(&reasons[..], [only] if only.starts_with(expected)), "{expected}: {reasons:?}");
        }
        let mut more = shape();
        more.disks[0].virtio.features |= 0b1000;
        assert_eq!(differences(&more, &shape()), [""; 0], "more features do no harm");
    }
}
