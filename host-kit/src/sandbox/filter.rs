//! The program that the kernel runs before each system call of a thread.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::calls::{self, Call, Only};
use super::mode::Mode;
use super::needs::Needs;
use crate::sync::lock;

/// What is looked for: the numbers of calls, and any of the rules for its arguments.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Programs that have been made: threads of one kind come and go.
static MADE: Mutex<BTreeMap<Needs, Arc<[BpfProgram]>>> = Mutex::new(BTreeMap::new());

/// A filter for one thread.
pub(crate) struct Filter {
    needs: Needs,
    programs: Arc<[BpfProgram]>,
}

impl Filter {
    pub(super) fn new(needs: Needs, mode: Mode) -> io::Result<Self> {
        let mut made = lock(&MADE);
        if let Some(programs) = made.get(&needs) {
            return Ok(Self { needs, programs: programs.clone() });
        }
        let programs: Arc<[_]> = programs(needs, mode).map_err(io::Error::other)?.into();
        made.insert(needs, programs.clone());
        Ok(Self { needs, programs })
    }

    pub(super) fn needs(&self) -> Needs {
        self.needs
    }

    /// For the calling thread, from now on.
    pub(super) fn install(&self) -> io::Result<()> {
        // The last one may forbid what is needed here, and no other does.
        for program in self.programs.iter() {
            seccompiler::apply_filter(program).map_err(|error| match error {
                seccompiler::Error::Prctl(source) | seccompiler::Error::Seccomp(source) => source,
                other => io::Error::other(other),
            })?;
        }
        Ok(())
    }
}

/// The kernel asks all of them and does the worst that one says.
fn programs(needs: Needs, mode: Mode) -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let outside = match mode {
        Mode::Log => SeccompAction::Log,
        Mode::Errno => SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        Mode::True | Mode::False => SeccompAction::Trap,
    };
    let refused = calls::refused(needs);
    let mut all = Vec::new();
    for (errno, calls) in refused.iter().filter(|(_, calls)| !calls.is_empty() && mode != Mode::Log) {
        let answer = SeccompAction::Errno(errno.cast_unsigned());
        all.push(program(rules(calls.iter().copied())?, SeccompAction::Allow, answer)?);
    }
    let refused = refused.into_iter().flat_map(|(_, calls)| calls);
    all.push(program(rules(calls::of(needs).chain(refused))?, outside, SeccompAction::Allow)?);
    Ok(all)
}

fn program(rules: Rules, others: SeccompAction, these: SeccompAction) -> Result<BpfProgram, seccompiler::Error> {
    Ok(SeccompFilter::new(rules, others, these, std::env::consts::ARCH.try_into()?)?.try_into()?)
}

/// A call that one group allows with any argument is allowed so, whatever the others say.
fn rules(calls: impl Iterator<Item = Call>) -> Result<Rules, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for call in calls {
        let rule = rules.entry(call.number).or_insert_with(|| Some(Vec::new()));
        match (conditions(call.only)?, rule.as_mut()) {
            (None, _) => *rule = None,
            (Some(more), Some(all)) => all.extend(more),
            (Some(_), None) => {}
        }
    }
    // To the library, no rule means any argument.
    Ok(rules.into_iter().map(|(number, rules)| (number, rules.unwrap_or_default())).collect())
}

/// `None`: none.
fn conditions(only: Only) -> Result<Option<Vec<SeccompRule>>, seccompiler::Error> {
    let rule = |argument, how, value: u32| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, value.into())?;
        Ok(SeccompRule::new(vec![condition])?)
    };
    match only {
        Only::Any => Ok(None),
        Only::Values(argument, values) => {
            values.iter().map(|value| rule(argument, SeccompCmpOp::Eq, *value)).collect::<Result<_, _>>().map(Some)
        }
        Only::Masked(argument, mask, values) => {
            let how = SeccompCmpOp::MaskedEq(mask.into());
            values.iter().map(|value| rule(argument, how.clone(), *value)).collect::<Result<_, _>>().map(Some)
        }
        Only::Not(argument, value) => Ok(Some(vec![rule(argument, SeccompCmpOp::Ne, value)?])),
        Only::ThisProcess(argument) => Ok(Some(vec![rule(argument, SeccompCmpOp::Eq, std::process::id())?])),
    }
}
