//! One host, no protection: the guest boots as both kernel formats, serves Redis, ends on the power button
//! with a clean disk.

use e2e::host::Shape;
use e2e::report::Report;
use e2e::scenario::{Options, Run};

fn run(shape: Shape) -> Report {
    let options = Options { fault: None, shape, rounds: 50, ..Options::default() };
    let tell = Box::new(|line: &str| eprintln!("{line}"));
    let report = Run::start(options, tell)
        .and_then(|run| run.complete(&mut |_| Ok(())))
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    eprintln!("{report}");
    report
}

#[test]
fn bzimage_boots_and_powers_off() {
    assert!(run(Shape::default()).passed());
}

#[test]
fn elf_kernel_boots_by_pvh() {
    assert!(run(Shape { kernel: "vmlinux", cpus: 1, ..Shape::default() }).passed());
}
