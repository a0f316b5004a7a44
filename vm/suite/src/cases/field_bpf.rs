// SPDX-License-Identifier: MIT OR Apache-2.0

//! BPF programs that see a listener's clients: they do what they do at a plain listener.

use std::cell::{Cell, RefCell};

use accf_kit::bpf::{self, CountAccepted, Xdp, XdpAction, XdpMode};
use accf_kit::control::{settings, timeout, OnTimeout};
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::raw::{self, Plug, RawClient, RawHost};
use accf_kit::wire::INTERFACE;
use anyhow::{ensure, Context as _, Result};
use socket2::SockRef;

use super::field_plug;
use crate::case::{case, each_family, expect_eq, needs_bpf, Context};
use crate::count::{counted, counts, processors};
use crate::scene::{
    accept, accept_from_port, expect_reset, serve, serve_raw, Peer, RawScene, Scene, WireScene,
    REQUEST,
};
use crate::ways::{Comparison, Moment, Way, LONG};

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

/// How a program chooses the listener of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chooser {
    /// `SO_ATTACH_REUSEPORT_EBPF`.
    Extended,
    /// `SO_ATTACH_REUSEPORT_CBPF`.
    Classic,
}

impl Chooser {
    fn choose(self, member: &Listener, number: u32) -> Result<()> {
        match self {
            Self::Extended => bpf::choose_in_group(member, number.cast_signed())?,
            Self::Classic => bpf::choose_in_group_classic(member, number)?,
        }
        Ok(())
    }
}

case!(
    Default, "field.bpf.reuseport" =>
    each_family(|c, f| reuseport(c, f, Chooser::Extended)).long(LONG)
);
case!(
    Default, "field.bpf.reuseport_classic" =>
    each_family(|c, f| reuseport(c, f, Chooser::Classic)).long(LONG)
);
/// Checks that the listener that a program chooses in a group gets all clients, whatever becomes of
/// them, also if another one is chosen meanwhile.
fn reuseport(context: &Context, family: Family, chooser: Chooser) -> Result<()> {
    const CLIENTS: u64 = 4;
    if chooser == Chooser::Extended {
        needs_bpf(context)?;
    }
    for fate in Fate::ALL {
        let listen = fate.listen(family);
        let scene = RawScene::new(context, family, &listen)?;
        let member = || listen.clone().port(scene.port()).open(&scene.ns);
        let (second, third) = (member()?, member()?);
        let choose = |number| chooser.choose(&scene.listener, number);
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

case!(
    Default, "field.bpf.xdp_native" =>
    each_family(|c, f| xdp(c, f, XdpMode::Native)).long(LONG)
);
case!(
    Default, "field.bpf.xdp_generic" =>
    each_family(|c, f| xdp(c, f, XdpMode::Generic)).long(LONG)
);
/// Checks Linux clients whose packets come out of XDP.
fn xdp(context: &Context, family: Family, mode: XdpMode) -> Result<()> {
    needs_bpf(context)?;
    for way in Way::ALL {
        let scene = WireScene::new(context, family, &way.listen(family))?;
        let program = Xdp::attach(&scene.wire.server, INTERFACE, mode, XdpAction::Pass)?;
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

case!(
    Default, "field.bpf.xdp_metadata" =>
    each_family(|c, f| xdp_of_tap(c, f, XdpAction::PassWithMetadata)).long(LONG)
);
case!(
    Default, "field.bpf.xdp_to_processor" =>
    each_family(|c, f| xdp_of_tap(c, f, XdpAction::ToProcessor(last_processor()))).long(LONG)
);
/// Checks clients behind a TAP interface whose frames XDP changes, or hands to another processor.
fn xdp_of_tap(context: &Context, family: Family, action: XdpAction) -> Result<()> {
    needs_bpf(context)?;
    for mode in XdpMode::ALL {
        let program = RefCell::new(None);
        let comparison = Comparison {
            host: &|ns| RawHost::plugged(ns, Plug::Tap),
            prepare: &|scene| {
                let attached = Xdp::attach(&scene.ns, raw::INTERFACE, mode, action)?;
                *program.borrow_mut() = Some(attached);
                field_plug::prepare(scene)
            },
            look: &|view| {
                let XdpAction::ToProcessor(number) = action else {
                    return field_plug::look(view);
                };
                // Before, it is that of a timer, or of another client.
                if view.moment == Moment::Requested {
                    let processor = SockRef::from(&view.accepted.stream).cpu_affinity()?;
                    expect_eq!(processor, number as usize, "the processor of the request");
                }
                field_plug::look(view)
            },
            ..Comparison::DEFAULT
        };
        comparison
            .run(context, family)
            .and_then(|()| comparison.resets(context, family))
            .and_then(|()| comparison.aborts(context, family))
            .with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

/// Returns the number of the last processor.
fn last_processor() -> u32 {
    u32::try_from(processors().saturating_sub(1)).unwrap_or(0)
}

case!(
    Default, "field.bpf.xdp_redirect_native" =>
    each_family(|c, f| xdp_redirect(c, f, XdpMode::Native)).long(LONG)
);
case!(
    Default, "field.bpf.xdp_redirect_generic" =>
    each_family(|c, f| xdp_redirect(c, f, XdpMode::Generic)).long(LONG)
);
/// Checks clients whose frames XDP forwards from one interface to another, both ways.
fn xdp_redirect(context: &Context, family: Family, mode: XdpMode) -> Result<()> {
    needs_bpf(context)?;
    let comparison = Comparison {
        host: &|ns| RawHost::redirected(ns, mode),
        prepare: &field_plug::prepare,
        look: &field_plug::look,
        ..Comparison::DEFAULT
    };
    comparison.run(context, family)?;
    comparison.resets(context, family)?;
    comparison.aborts(context, family)
}
