// SPDX-License-Identifier: MIT OR Apache-2.0

//! TOS, traffic class, flow label and TTL of what a server sends: they do not depend on the way in
//! which a connection was accepted or refused.

use accf_kit::control::{settings, OnTimeout};
use accf_kit::endpoint::{Family, Listen};
use accf_kit::forge::Forged;
use accf_kit::packet_options::{self, Ask};
use accf_kit::segment::Flags;
use anyhow::{Context as _, Result};
use socket2::SockRef;

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::counted;
use crate::scene::{accept_queue_holds, expect_reset, RawScene, Scene};
use crate::ways::{inject, sent_to, way_of, Comparison, Moment, View, LONG};

/// What a listener says of what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// Nothing.
    Nothing,
    /// TOS or traffic class, TTL or hop limit.
    Fixed,
    /// That its connections have their clients' TOS (`tcp_reflect_tos`) and flow label.
    Reflects,
}

impl Says {
    const ALL: [Self; 3] = [Self::Nothing, Self::Fixed, Self::Reflects];

    fn prepare(self, scene: &RawScene) -> Result<()> {
        // A flow label of the kernel's own is a random number.
        scene.ns.set_sysctl("net.ipv6.auto_flowlabels", "0")?;
        scene.ns.set_sysctl("net.ipv6.flowlabel_consistency", "0")?;
        let socket = SockRef::from(&scene.listener);
        match self {
            Self::Nothing => {}
            Self::Fixed => {
                if scene.family.is_v4_on_the_wire() {
                    socket.set_tos_v4(0x28)?;
                    socket.set_ttl_v4(17)?;
                }
                if scene.family != Family::V4 {
                    socket.set_tclass_v6(0x48)?;
                    socket.set_unicast_hops_v6(18)?;
                }
            }
            Self::Reflects => {
                scene.ns.set_sysctl("net.ipv4.tcp_reflect_tos", "1")?;
                if scene.family == Family::V6 {
                    packet_options::reflect_flow_label(&scene.listener)?;
                }
            }
        }
        packet_options::ask(&scene.listener, scene.family, Ask::FlowInfo)?;
        Ok(())
    }
}

/// Returns what a connection says of what it sends, and what its response says.
fn look(context: &Context, view: &View<'_>) -> Result<Vec<String>> {
    let socket = SockRef::from(&view.accepted.stream);
    let mut facts = vec![
        format!("TOS {:?}, TTL {:?}", socket.tos_v4(), socket.ttl_v4()),
        format!(
            "{:?}",
            packet_options::told(&view.accepted.stream, view.scene.family)?
        ),
    ];
    if view.scene.family != Family::V4 {
        facts.push(format!("traffic class {:?}", socket.tclass_v6()));
    }
    if view.moment == Moment::Served {
        let response = sent_to(context, view.scene, view.client, |packet| {
            packet.segment.has_data()
        })?;
        facts.push(format!("response {:?}", way_of(&response)?));
    }
    Ok(facts)
}

case!(Default, "field.tos.accepted" => each_family(accepted).long(LONG));
/// Checks connections that were accepted each way.
fn accepted(context: &Context, family: Family) -> Result<()> {
    for says in Says::ALL {
        Comparison {
            prepare: &|scene| says.prepare(scene),
            look: &|view| look(context, view),
            ..Comparison::DEFAULT
        }
        .run(context, family)
        .with_context(|| format!("{says:?}"))?;
    }
    Ok(())
}

/// How a client comes to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// By a plain listener whose accept queue is full (`tcp_abort_on_overflow`).
    Overflow,
    /// At the deadline.
    Deadline,
    /// As the oldest of too many.
    Evicted,
}

case!(Default, "field.tos.reset" => each_family(reset).long(LONG));
/// Checks resets of clients whose bare ACKs have a TOS and a flow label.
fn reset(context: &Context, family: Family) -> Result<()> {
    for says in Says::ALL {
        for dsfield in [0, 0xb8, 0x29] {
            let plain = refuse(context, family, says, dsfield, Refusal::Overflow)?;
            for refusal in [Refusal::Deadline, Refusal::Evicted] {
                let seen = refuse(context, family, says, dsfield, refusal)?;
                expect_eq!(
                    seen,
                    plain,
                    "the reset ({refusal:?}, TOS {dsfield:#x}, the listener: {says:?})"
                );
            }
        }
    }
    Ok(())
}

/// Has a client be reset, and returns what the reset says.
fn refuse(
    context: &Context,
    family: Family,
    says: Says,
    dsfield: u8,
    refusal: Refusal,
) -> Result<String> {
    let reset = |timeout_ms, max_parked| {
        let config = settings(timeout_ms, max_parked, OnTimeout::Reset);
        Listen::filtered(family).config(config)
    };
    let listen = match refusal {
        Refusal::Overflow => Listen::plain(family).backlog(1),
        Refusal::Deadline => reset(200, 0),
        Refusal::Evicted => reset(60_000, 1),
    };
    let scene = RawScene::new(context, family, &listen)?;
    says.prepare(&scene)?;
    let mut client = scene.half_open(context)?;
    if refusal == Refusal::Overflow {
        for queued in 1..=2 {
            scene.parked(context)?;
            accept_queue_holds(&scene.listener, context, queued)?;
        }
        scene.ns.set_sysctl("net.ipv4.tcp_abort_on_overflow", "1")?;
    }
    let mut ack = Forged::from(client.segment(Flags::ACK, b""));
    ack.dsfield = dsfield;
    ack.flow_label = 0xa_bcde;
    ack.hop_limit = 33;
    inject(&scene, &ack)?;
    if refusal == Refusal::Evicted {
        scene.counts(context, counted!(parked: 1))?;
        scene.parked(context)?;
    }
    let next = client.rcv_nxt;
    expect_reset(context, &mut client, "no reset came")?;
    let packet = sent_to(context, &scene, &client, |packet| packet.segment.is_rst())?;
    let segment = &packet.segment;
    Ok(format!(
        "{:x?}, {}, {} bytes, {} from what was expected, ack {}, window {}",
        way_of(&packet)?,
        segment.flags,
        packet.bytes.len(),
        segment.seq.wrapping_sub(next),
        segment.ack,
        segment.window
    ))
}
