// SPDX-License-Identifier: MIT OR Apache-2.0

//! Failing allocations, a lossy network, connection tracking: each client gets its answer in the
//! end, and the counts are correct.

use std::time::Duration;

use accf_kit::clients::{Fate, Pace};
use accf_kit::control::Stats;
use accf_kit::fault::{Failing, Whose};
use accf_kit::impaired_wire::{ImpairedWire, Impairment};
use accf_kit::module;
use anyhow::{bail, ensure, Result};

use crate::case::{case, once, Context, Kernel};
use crate::count::describe;

/// How long a case may take.
const LIMIT: Duration = Duration::from_secs(180);

/// Loads the module, runs a test, and unloads the module, which requests with failed allocations
/// must not prevent.
fn with_module<T>(context: &Context, test: impl FnOnce() -> Result<T>) -> Result<()> {
    module::reload("")?;
    test()?;
    module::unload(context.patience() * 2)
}

case!(Alone, "fault.lossy_cable.20_percent" => once(lossy_cable).long(LIMIT));
fn lossy_cable(context: &Context) -> Result<()> {
    let trouble = Impairment {
        disturbed: 20,
        ..Impairment::default()
    };
    with_module(context, || meet(context, trouble))
}

case!(Alone, "fault.connection_tracking" => once(connection_tracking).long(LIMIT));
fn connection_tracking(context: &Context) -> Result<()> {
    let trouble = Impairment {
        tracked: true,
        ..Impairment::default()
    };
    with_module(context, || meet(context, trouble))
}

case!(
    Alone, "fault.memory_of_the_module.1_percent" =>
    once(|context| with_module(context, || no_memory(context, Whose::Module, 1))).long(LIMIT)
);
case!(
    Alone, "fault.memory_of_the_network.1_percent" =>
    once(|context| with_module(context, || no_memory(context, Whose::Network, 1))).long(LIMIT)
);
case!(
    Alone, "fault.memory_of_the_module.10_percent" =>
    once(|context| with_module(context, || no_memory(context, Whose::Module, 10))).long(LIMIT)
);
case!(
    Alone, "fault.memory_of_the_network.10_percent" =>
    once(|context| with_module(context, || no_memory(context, Whose::Network, 10))).long(LIMIT)
);
/// Checks clients and counts while a percentage of allocations fails.
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
    // The list entry of a parked connection is one of these allocations; sometimes a spare one is
    // used instead.
    if (whose, percent) == (Whose::Module, 10) {
        let bypassed: u64 = seen.iter().map(|seen| seen.bypass_no_memory).sum();
        context.note(format!("{bypassed} not parked for want of memory"));
    }
    Ok(())
}

/// Has clients of every kind connect to listeners of all settings, and compares what happened to
/// them with what they did.
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

/// Returns how many clients ended in each way.
fn fates(wire: &ImpairedWire) -> Vec<(Fate, u64)> {
    let of = |fate| {
        let all = wire.clients().tally().fates().iter();
        all.filter(|((.., it), _)| *it == fate)
            .map(|(_, count)| *count)
            .sum()
    };
    Fate::ALL.into_iter().map(|fate| (fate, of(fate))).collect()
}
