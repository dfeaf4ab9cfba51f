//! Good histories pass; each kind of violation has one that shows it, and shows nothing else.

use super::*;

/// An operation that was sent at `from` and answered at `to` (0: never), in milliseconds.
fn op(ledger: Ledger, action: Action, from: u64, to: u64) -> Operation {
    let answered = (to != 0).then(|| Duration::from_millis(to));
    Operation { ledger, action, invoked: Duration::from_millis(from), answered }
}

fn write(seq: u64, from: u64, to: u64) -> Operation {
    op(Ledger::Rows(0), Action::Write { seq }, from, to)
}

fn increment(reply: u64, from: u64, to: u64) -> Operation {
    op(Ledger::Counter, Action::Increment { reply }, from, to)
}

fn read(highest: u64, count: u64, from: u64, to: u64) -> Operation {
    op(Ledger::Rows(0), Action::Read { highest, count }, from, to)
}

fn rows(numbers: &[u64]) -> Contents {
    BTreeMap::from([(Ledger::Rows(0), numbers.iter().map(|seq| Entry { seq: *seq, intact: true }).collect())])
}

fn counter(value: u64) -> Contents {
    BTreeMap::from([(Ledger::Counter, (1..=value).map(|seq| Entry { seq, intact: true }).collect())])
}

const MS: fn(u64) -> Duration = Duration::from_millis;
const ROWS: Ledger = Ledger::Rows(0);

#[test]
fn a_good_history_has_no_violation() {
    let history = [write(1, 1, 2), read(1, 1, 3, 4), write(2, 5, 6), write(3, 7, 8), read(3, 3, 9, 10)];
    assert_eq!(check(&history, &rows(&[1, 2, 3])), []);
    let counting = [increment(1, 1, 2), increment(2, 3, 4)];
    assert_eq!(check(&counting, &counter(2)), []);
    assert_eq!(check(&[], &Contents::new()), []);
}

#[test]
fn what_was_not_answered_may_be_there_or_not() {
    let history = [write(1, 1, 2), write(2, 3, 0), write(3, 5, 6)];
    for end in [&[1, 3][..], &[1, 2, 3]] {
        assert_eq!(check(&history, &rows(end)), [], "{end:?}");
    }
    for (seen, at) in [(3, 3), (2, 3), (1, 1)] {
        let read = read(at, seen, 4, 7);
        assert_eq!(check(&[history[0], history[1], read, history[2]], &rows(&[1, 2, 3])), [], "{seen} up to {at}");
    }
    for (next, value) in [(2, 2), (3, 3), (2, 3)] {
        let history = [increment(1, 1, 2), increment(0, 3, 0), increment(next, 5, 6), increment(0, 7, 0)];
        assert_eq!(check(&history, &counter(value)), [], "{next} {value}");
    }
}

#[test]
fn operations_at_the_same_time_may_be_seen_or_not() {
    for seen in [1, 2] {
        assert_eq!(check(&[write(1, 1, 2), write(2, 3, 9), read(seen, seen, 4, 5)], &rows(&[1, 2])), []);
    }
}

#[test]
fn an_acknowledged_write_that_is_missing_is_found() {
    let found = check(&[write(1, 1, 2), write(2, 3, 4)], &rows(&[1]));
    assert_eq!(found, [Violation::Lost { ledger: ROWS, seq: 2, at: MS(4) }]);
    let found = check(&[increment(1, 1, 2), increment(2, 3, 4)], &counter(1));
    assert_eq!(found, [Violation::Lost { ledger: Ledger::Counter, seq: 2, at: MS(4) }]);
    assert_eq!(check(&[write(1, 1, 2)], &Contents::new()).len(), 1, "a whole ledger that is missing");
}

#[test]
fn a_write_that_is_there_twice_is_found() {
    let found = check(&[write(1, 1, 2)], &rows(&[1, 1]));
    assert_eq!(found, [Violation::Twice { ledger: ROWS, seq: 1, times: 2 }]);
}

#[test]
fn what_nobody_wrote_is_found() {
    let found = check(&[write(1, 1, 2)], &rows(&[1, 2]));
    assert_eq!(found, [Violation::NeverWritten { ledger: ROWS, seq: 2 }]);
    let found = check(&[increment(1, 1, 2)], &counter(2));
    assert_eq!(found, [Violation::NeverWritten { ledger: Ledger::Counter, seq: 2 }]);
    assert_eq!(check(&[], &rows(&[1])).len(), 1, "in a ledger that nobody used");
}

#[test]
fn another_value_is_found() {
    let contents = BTreeMap::from([(ROWS, vec![Entry { seq: 1, intact: false }])]);
    assert_eq!(check(&[write(1, 1, 2)], &contents), [Violation::Altered { ledger: ROWS, seq: 1 }]);
}

#[test]
fn a_read_that_misses_an_acknowledged_write_is_found() {
    let found = check(&[write(1, 1, 2), write(2, 3, 4), read(1, 1, 5, 6)], &rows(&[1, 2]));
    assert_eq!(found, [Violation::ReadWentBack { ledger: ROWS, at: MS(5), saw: 1, known: 2 }]);
}

#[test]
fn a_read_that_misses_what_another_read_saw_is_found() {
    // Entry 2 was never acknowledged, but once it was seen it must stay.
    let found = check(&[write(1, 1, 2), write(2, 3, 0), read(2, 2, 4, 5), read(1, 1, 6, 7)], &rows(&[1, 2]));
    assert_eq!(found, [Violation::ReadWentBack { ledger: ROWS, at: MS(6), saw: 1, known: 2 }]);
}

#[test]
fn a_read_of_what_was_not_sent_yet_is_found() {
    let found = check(&[write(1, 1, 2), read(2, 2, 3, 4), write(2, 5, 6)], &rows(&[1, 2]));
    assert_eq!(found, [Violation::ReadAhead { ledger: ROWS, at: MS(4), saw: 2, invoked: 1 }]);
}

#[test]
fn a_read_with_too_few_or_too_many_entries_is_found() {
    for count in [1, 3] {
        let found = check(&[write(1, 1, 2), write(2, 3, 4), read(2, count, 5, 6)], &rows(&[1, 2]));
        assert_eq!(found, [Violation::ReadWithHoles { ledger: ROWS, at: MS(6), count, highest: 2 }]);
    }
}

#[test]
fn a_number_that_the_counter_gives_again_is_found() {
    let found = check(&[increment(1, 1, 2), increment(1, 3, 4)], &counter(1));
    assert_eq!(found, [Violation::Repeated { ledger: Ledger::Counter, at: MS(4), reply: 1, last: 1 }]);
}

#[test]
fn a_number_that_the_counter_leaves_out_is_found() {
    let found = check(&[increment(1, 1, 2), increment(3, 3, 4)], &counter(3));
    let skipped = Violation::Skipped { ledger: Ledger::Counter, at: MS(4), reply: 3, last: 1 };
    assert_eq!(found, [skipped, Violation::NeverWritten { ledger: Ledger::Counter, seq: 2 }]);
}

#[test]
fn violations_are_told_in_words() {
    let text = Violation::Lost { ledger: ROWS, seq: 7, at: MS(1500) }.to_string();
    assert_eq!(text, "the PostgreSQL rows of client 0: entry 7 was acknowledged at 1.500 s and is missing");
}
