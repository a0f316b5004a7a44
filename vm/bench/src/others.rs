// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a connection of a plain listener costs without the module, with it, and while another listener uses it.
//!
//! The module is loaded and unloaded again in each round, so that nothing else differs.

use std::time::Duration;

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::endpoint::Listen;
use accf_kit::netns::Netns;
use accf_kit::{control, module};
use anyhow::{ensure, Context, Result};

use crate::client::{Clients, Manner};
use crate::connection::connections;
use crate::rounds::{Figure, Figures, Plan, FAMILY};
use crate::server::{Kind, Server};

/// How the module is loaded, for this benchmark and all others.
pub(crate) const PARAMETERS: &str = "max_parked_netns=0";
/// Where the other listener is.
const OTHER_PORT: u16 = 80;
/// How many clients of the other listener think meanwhile.
const PARKED: u32 = 20;
/// The first of them; those that are measured are before.
const FIRST_PARKED: u32 = 1_000_000;
/// How long the kernel may take to answer a client, and to see that nobody uses the module any more.
const LIMIT: Duration = Duration::from_secs(10);

/// Measures. Leaves the module loaded.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Measurement>> {
    ensure!(
        !module::is_loaded()?,
        "the module is loaded already: what it costs others cannot be seen"
    );
    let ns = Netns::new()?;
    let mut clients = Clients::new(&ns, OTHER_PORT)?;
    let server = Server::start(&ns, Kind::Epoll, &Listen::plain(FAMILY))?;
    let mut figures = Figures::new(Bench::Others);
    let mut add = |clients: &mut Clients, case| -> Result<()> {
        let costs = clients
            .visit(Manner::Pause, &[&server], connections(plan))
            .context(case)?;
        let figure = Figure {
            metric: "instructions",
            unit: Unit::Instructions,
            listener: Listener::Plain,
            case,
            x: None,
        };
        for cost in costs {
            figures.add(figure, cost.each(cost.instructions));
        }
        Ok(())
    };
    clients.warm_up(&[&server])?;
    for round in 0..plan.rounds {
        if round > 0 {
            module::unload(LIMIT)?;
        }
        add(&mut clients, "without_module")?;
        module::load(PARAMETERS)?;
        add(&mut clients, "with_module")?;
        // Until they send, and thus longer than the measurement takes.
        let listen = Listen::filtered(FAMILY).config(control::timeout(0));
        let other = listen.port(OTHER_PORT).open(&ns)?;
        clients
            .swarm()
            .open(FIRST_PARKED..FIRST_PARKED + PARKED, LIMIT)?;
        let all_are_parked = || -> Result<()> {
            let parked = control::stats(&other)?.parked;
            ensure!(
                parked == u64::from(PARKED),
                "{parked} of {PARKED} clients are parked"
            );
            Ok(())
        };
        all_are_parked()?;
        add(&mut clients, "filter_elsewhere")?;
        all_are_parked()?;
    }
    server.stop()?;
    Ok(figures.finish())
}
