// SPDX-License-Identifier: MIT OR Apache-2.0

//! Clients behind TUN and TAP interfaces of every kind, whose packets come as packets, as Ethernet
//! frames, without checksums, as super-segments or in pages: a connection is the same as at a plain
//! listener, whichever way it was accepted.

use accf_kit::endpoint::Family;
use accf_kit::packet_options::{self, Ask};
use accf_kit::raw::{Plug, RawHost, GSO_SIZE};
use anyhow::{Context as _, Result};

use crate::case::{case, each_family, Context};
use crate::scene::RawScene;
use crate::ways::{facts, without_syn_acks, Comparison, Moment, View, LONG};

/// More than a super-segment of four, and more than a page.
const LARGE: [u8; 4 * GSO_SIZE + 500] = [b'!'; 4 * GSO_SIZE + 500];

/// Has nothing of one connection tell of the next.
fn forget(scene: &RawScene) -> Result<()> {
    scene.ns.set_sysctl("net.ipv4.tcp_no_metrics_save", "1")
}

/// The same, and asks for control messages.
pub(super) fn prepare(scene: &RawScene) -> Result<()> {
    forget(scene)?;
    packet_options::ask(&scene.listener, scene.family, Ask::All)?;
    Ok(())
}

/// Returns what is known of a connection.
pub(super) fn look(view: &View<'_>) -> Result<Vec<String>> {
    // The response is not acknowledged, and so is sent again some time.
    if view.moment == Moment::Served {
        return Ok(Vec::new());
    }
    facts(view.accepted, view.scene.family).map(without_syn_acks)
}

case!(Default, "field.plug.tun" => each_family(|c, f| plugged(c, f, Plug::Tun)).long(LONG));
case!(
    Default, "field.plug.tun_offloads" =>
    each_family(|c, f| plugged(c, f, Plug::TunOffloads)).long(LONG)
);
case!(Default, "field.plug.tap" => each_family(|c, f| plugged(c, f, Plug::Tap)).long(LONG));
case!(
    Default, "field.plug.tap_offloads" =>
    each_family(|c, f| plugged(c, f, Plug::TapOffloads)).long(LONG)
);
case!(
    Default, "field.plug.tap_frags" =>
    each_family(|c, f| plugged(c, f, Plug::TapFrags)).long(LONG)
);
/// Checks clients that are accepted each way, clients that are reset, and one that resets.
fn plugged(context: &Context, family: Family, plug: Plug) -> Result<()> {
    let small = Comparison {
        host: &|ns| RawHost::plugged(ns, plug),
        prepare: &prepare,
        look: &look,
        ..Comparison::DEFAULT
    };
    small.run(context, family)?;
    small.resets(context, family)?;
    small.aborts(context, family)?;
    // For control messages, tcp_v6_do_rcv() charges a clone of what comes to a connection, which is
    // not for a segment that makes one: of large data the receive window tells the difference.
    let large = Comparison {
        request: &LARGE,
        prepare: &forget,
        ..small
    };
    large.run(context, family).context("large data")
}
