// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a connection of a plain listener costs without the module, with it, and while another
//! listener uses it.
//!
//! The module is loaded and unloaded in each round, so that nothing else differs.

use std::time::Duration;

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::endpoint::Listen;
use accf_kit::netns::Netns;
use accf_kit::{control, module, wait};
use anyhow::{ensure, Context, Result};

use crate::client::{Clients, Manner};
use crate::connection::connections;
use crate::rounds::{Figure, Figures, Plan, FAMILY};
use crate::server::{Kind, Server};

/// The module's parameters, for this benchmark and all others.
pub(crate) const PARAMETERS: &str = "max_parked_netns=0";
/// The port of the other listener.
const OTHER_PORT: u16 = 80;
/// The number of clients parked at the other listener.
const PARKED: u32 = 20;
/// The first of them; the numbers of the measured clients are lower.
const FIRST_PARKED: u32 = 1_000_000;
/// The limit for the kernel to answer a client, and to release the last use of the module.
const LIMIT: Duration = Duration::from_secs(10);

/// Measures. Leaves the module loaded.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Measurement>> {
    ensure!(
        !module::is_loaded()?,
        "the module is already loaded: its cost for plain listeners cannot be measured"
    );
    let ns = Netns::new()?;
    let mut clients = Clients::new(&ns, OTHER_PORT)?;
    let server = Server::start(&ns, Kind::Epoll, &Listen::plain(FAMILY))?;
    let mut figures = Figures::new(Bench::Others);
    let mut add = |clients: &mut Clients, case| -> Result<()> {
        let costs = clients
            .visit(Manner::Pause, &[&server], connections(plan))
            .context(case)?;
        let figure = Figure::new("instructions", Unit::Instructions, Listener::Plain);
        for cost in costs {
            figures.add(figure.case(case), cost.each(cost.instructions));
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
        // Without a deadline: they stay parked during the measurement.
        let listen = Listen::filtered(FAMILY).config(control::timeout(0));
        let other = listen.port(OTHER_PORT).open(&ns)?;
        clients
            .tun()
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
        drop(other);
        // Their resets would come to clients of the next round.
        let mut told = 0;
        wait::until(LIMIT, || {
            while let Some((_, segment)) = clients.tun().take()? {
                told += u32::from(segment.is_rst());
            }
            Ok(told == PARKED)
        })?;
        ensure!(
            told == PARKED,
            "{told} of {PARKED} parked clients were reset"
        );
    }
    server.stop()?;
    Ok(figures.finish())
}
