// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory runs out at random, the network loses packets, a firewall looks at them: whoever should get an answer gets it in
//! the end, and the sums are right.

use std::time::Duration;

use accf_kit::clients::{Fate, Pace};
use accf_kit::control::Stats;
use accf_kit::fault::{Failing, Whose};
use accf_kit::impaired_wire::{ImpairedWire, Impairment};
use accf_kit::module;
use anyhow::{bail, ensure, Result};

use crate::case::{Case, Context, Kernel, Stage};
use crate::count::describe;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for percent in [1, 10] {
        for (name, whose) in [("module", Whose::Module), ("network", Whose::Network)] {
            cases.push(case(
                format!("fault.memory_of_the_{name}.{percent}_percent"),
                move |context| no_memory(context, whose, percent),
            ));
        }
    }
    cases.push(case("fault.lossy_cable.20_percent", |context| {
        let trouble = Impairment {
            disturbed: 20,
            ..Impairment::default()
        };
        meet(context, trouble).map(drop)
    }));
    cases.push(case("fault.connection_tracking", |context| {
        let trouble = Impairment {
            tracked: true,
            ..Impairment::default()
        };
        meet(context, trouble).map(drop)
    }));
    cases
}

/// Alone, as memory is everybody's.
fn case(name: impl Into<String>, body: impl Fn(&Context) -> Result<()> + 'static) -> Case {
    Case::new(Stage::Alone, name, move |context| {
        module::reload("")?;
        body(context)?;
        // Nothing is left of those whose memory failed, either.
        module::unload(context.patience() * 2)
    })
    .long(Duration::from_secs(180))
}

/// Memory runs out for so many of a hundred allocations.
fn no_memory(context: &Context, whose: Whose, percent: u8) -> Result<()> {
    let Some(failing) = Failing::some(whose, percent)? else {
        return context.lacks("failslab");
    };
    let trouble = Impairment {
        shortage: true,
        no_packets: whose == Whose::Network,
        ..Impairment::default()
    };
    let seen = meet(context, trouble)?;
    let failed = failing.injected()?;
    context.note(format!("{failed} allocations failed"));
    ensure!(failed > 0, "no allocation failed");
    // What the module remembers a parked connection by is one of them; now and then it is made of what others have left.
    if (whose, percent) == (Whose::Module, 10) {
        let bypassed: u64 = seen.iter().map(|seen| seen.bypass_no_memory).sum();
        context.note(format!("{bypassed} not parked for want of memory"));
    }
    Ok(())
}

/// Has clients of every habit meet listeners of all settings, and compares what became of them with what they did.
fn meet(context: &Context, trouble: Impairment) -> Result<Vec<Stats>> {
    const AT_ONCE: usize = 60;
    let (clients, deadline) = match context.kernel {
        Kernel::Stock => (400, Duration::from_millis(1500)),
        Kernel::Dev => (150, Duration::from_millis(4000)),
    };
    context.note(format!("seed {}", context.seed));
    let lifetime = context.patience() * 3;
    let mut wire = ImpairedWire::new(trouble, deadline, lifetime, context.rng())?;
    let pace = Pace {
        at_once: AT_ONCE,
        gap: Duration::from_millis(2),
    };
    wire.run(pace, |begun| begun < clients)?;
    for (fate, count) in fates(&wire) {
        context.note(format!("{count} {}", fate.text()));
    }
    let complaints = wire.clients().complaints(0);
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    let all = wire.settle(context.patience() * 6)?;
    for seen in &all {
        context.note(describe(seen));
    }
    let parked: u64 = all.iter().map(|seen| seen.parked_total).sum();
    ensure!(parked > clients / 4, "only {parked} were parked");
    Ok(all)
}

/// How many clients met each fate.
fn fates(wire: &ImpairedWire) -> Vec<(Fate, u64)> {
    let of = |fate| {
        let all = wire.clients().tally().fates().iter();
        all.filter(|((.., it), _)| *it == fate)
            .map(|(_, count)| *count)
            .sum()
    };
    Fate::ALL.into_iter().map(|fate| (fate, of(fate))).collect()
}
