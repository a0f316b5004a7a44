// SPDX-License-Identifier: MIT OR Apache-2.0

//! BPF programs that see a listener's clients: they do what they do at a plain listener.

use std::cell::Cell;

use accf_kit::bpf::{self, CountAccepted, XdpPass};
use accf_kit::control::{settings, timeout, OnTimeout};
use accf_kit::endpoint::{Family, Listen};
use accf_kit::raw::RawClient;
use accf_kit::wire::INTERFACE;
use anyhow::{ensure, Result};

use crate::case::{case, each_family, expect_eq, Context, Kernel, Skip};
use crate::count::{counted, counts};
use crate::scene::{
    accept, accept_from_port, expect_reset, serve, serve_raw, Peer, RawScene, Scene, WireScene,
    REQUEST,
};
use crate::ways::{Comparison, Way, LONG};

/// Ends a case on a kernel without `bpf()`.
fn needs_bpf(context: &Context) -> Result<()> {
    // The kernel with checkers is built without it.
    if context.kernel == Kernel::Dev {
        return Err(Skip("this kernel has no bpf() (CONFIG_BPF_SYSCALL)".to_owned()).into());
    }
    Ok(())
}

/// What becomes of the clients of a group of listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// They are accepted by their bare ACKs, at plain listeners.
    Plain,
    /// They are accepted by data.
    Data,
    /// They are accepted at the deadline.
    Deadline,
    /// All but the last one are accepted, because there is room for one.
    Evicted,
    /// They are reset at the deadline.
    Reset,
}

impl Fate {
    const ALL: [Self; 5] = [
        Self::Plain,
        Self::Data,
        Self::Deadline,
        Self::Evicted,
        Self::Reset,
    ];

    fn listen(self, family: Family) -> Listen {
        let filtered = |config| Listen::filtered(family).config(config);
        match self {
            Self::Plain => Listen::plain(family),
            Self::Data => filtered(timeout(0)),
            Self::Deadline => filtered(timeout(3000)),
            Self::Evicted => filtered(settings(60_000, 1, OnTimeout::Accept)),
            Self::Reset => filtered(settings(3000, 0, OnTimeout::Reset)),
        }
        .reuse_port()
    }
}

case!(Default, "field.bpf.reuseport" => each_family(reuseport).long(LONG));
/// Checks that the listener that a program chooses in a group gets all clients, whatever becomes of
/// them, also if another one is chosen meanwhile.
fn reuseport(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: u64 = 4;
    needs_bpf(context)?;
    for fate in Fate::ALL {
        let listen = fate.listen(family);
        let scene = RawScene::new(context, family, &listen)?;
        let member = || listen.clone().port(scene.port()).open(&scene.ns);
        let (second, third) = (member()?, member()?);
        let choose = |number| bpf::choose_in_group(&scene.listener, number);
        choose(1)?;
        let mut clients = scene.parked_many(context, CLIENTS as usize)?;
        if !matches!(fate, Fate::Plain | Fate::Evicted) {
            counts(context, &second, counted!(parked: CLIENTS))?;
        }
        choose(2)?;
        let accepted = |clients: &mut [RawClient], data_first: bool| -> Result<()> {
            for client in clients {
                if data_first {
                    client.data(REQUEST)?;
                }
                let accepted = accept_from_port(&second, context, client.port())?;
                if data_first {
                    serve(&accepted)?;
                } else {
                    serve_raw(client, &accepted)?;
                }
                client.read_response(context)?;
            }
            Ok(())
        };
        let expected = match fate {
            Fate::Plain => {
                accepted(&mut clients, false)?;
                None
            }
            Fate::Data => {
                accepted(&mut clients, true)?;
                Some(counted!(released_data: CLIENTS))
            }
            Fate::Deadline => {
                accepted(&mut clients, false)?;
                Some(counted!(timeout_accept: CLIENTS))
            }
            Fate::Evicted => {
                let last = clients.split_off(clients.len() - 1);
                accepted(&mut clients, false)?;
                drop(last);
                Some(counted!(parked: 1, evicted: CLIENTS - 1))
            }
            Fate::Reset => {
                for client in &mut clients {
                    expect_reset(context, client, "a silent client was not reset")?;
                }
                Some(counted!(timeout_reset: CLIENTS))
            }
        };
        if let Some(expected) = expected {
            counts(context, &second, expected)?;
            for other in [&scene.listener, &third] {
                counts(context, other, counted!())?;
            }
        }
        let (mut newcomer, _) = scene.parked(context)?;
        newcomer.data(REQUEST)?;
        let connection = accept_from_port(&third, context, newcomer.port())?;
        serve(&connection)?;
        newcomer.read_response(context)?;
        ensure!(
            scene.listener.accept_now()?.is_none() && second.accept_now()?.is_none(),
            "another listener of the group has a connection ({fate:?})"
        );
    }
    Ok(())
}

case!(Default, "field.bpf.sock_ops" => each_family(sock_ops).long(LONG));
/// Checks that a program for sockets is told once of each accepted connection, before it can be
/// accepted.
fn sock_ops(context: &Context, family: Family) -> Result<()> {
    needs_bpf(context)?;
    let counter = CountAccepted::start()?;
    let before = Cell::new(0);
    Comparison {
        prepare: &|_| {
            before.set(counter.count()?);
            Ok(())
        },
        look: &|_| Ok(vec![format!("{} calls", counter.count()? - before.get())]),
        ..Comparison::DEFAULT
    }
    .run(context, family)?;
    ensure!(counter.count()? > 0, "the program counts nothing");
    // A client that is reset was never connected.
    let calls = counter.count()?;
    let config = settings(400, 0, OnTimeout::Reset);
    let scene = RawScene::new(context, family, &Listen::filtered(family).config(config))?;
    let (mut client, _) = scene.parked(context)?;
    expect_reset(context, &mut client, "the silent client was not reset")?;
    expect_eq!(counter.count()?, calls, "calls after a client was reset");
    Ok(())
}

case!(Default, "field.bpf.xdp" => each_family(xdp).long(LONG));
/// Checks clients whose packets come out of XDP.
fn xdp(context: &Context, family: Family) -> Result<()> {
    needs_bpf(context)?;
    for way in Way::ALL {
        let scene = WireScene::new(context, family, &way.listen(family))?;
        let program = XdpPass::attach(&scene.wire.server, INTERFACE)?;
        let (mut client, _) = scene.connect_and_ack(context)?;
        let newcomer = match way {
            Way::Evicted => Some(scene.connect_and_ack(context)?),
            Way::Data => {
                scene.counts(context, counted!(parked: 1))?;
                client.request()?;
                None
            }
            _ => None,
        };
        let accepted = accept(&scene.listener, context)?;
        expect_eq!(accepted.peer.port(), client.local.port(), "the client");
        if way != Way::Data {
            client.request()?;
        }
        serve(&accepted)?;
        client.response()?;
        match way {
            Way::Plain => {}
            Way::Data => scene.counts(context, counted!(released_data: 1))?,
            Way::Deadline => scene.counts(context, counted!(timeout_accept: 1))?,
            Way::Evicted => scene.counts(context, counted!(parked: 1, evicted: 1))?,
        }
        drop((program, newcomer));
    }
    Ok(())
}
