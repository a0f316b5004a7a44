// SPDX-License-Identifier: MIT OR Apache-2.0

//! Clients behind a member of a VRF: a connection is the same as at a plain listener, whichever way
//! it was accepted, and wherever the listener is bound.

use std::time::Duration;

use accf_kit::endpoint::Family;
use accf_kit::packet_options::{self, Ask};
use accf_kit::raw::INTERFACE;
use accf_kit::segment::Segment;
use accf_kit::wait;
use anyhow::{ensure, Result};
use socket2::SockRef;

use crate::case::{case, each_family, Context};
use crate::scene::RawScene;
use crate::ways::{Comparison, View, LONG};

/// The VRF's name.
const VRF: &str = "vrf0";

/// Where a listener is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// To the VRF.
    Vrf,
    /// To the VRF's member.
    Member,
    /// To nothing, where listeners take clients of all VRFs (`tcp_l3mdev_accept`).
    Nothing,
}

impl Bound {
    /// Makes the clients' interface a member of a VRF, and binds the listener.
    fn prepare(self, scene: &RawScene) -> Result<()> {
        scene.ns.ip(&format!(
            "link add {VRF} type vrf table 10\n\
             link set {VRF} up\n\
             link set {INTERFACE} master {VRF}\n\
             addr replace {}/64 dev {INTERFACE} nodad",
            scene.host.server_address(Family::V6, 1).ip()
        ))?;
        // The addresses move to the VRF's table, some time later.
        for family in [Family::V4, Family::V6] {
            let mut client = scene.host.client(family, 1);
            let answered = wait::until(Duration::from_secs(20), || {
                client.syn()?;
                let answer = client.receive_until(Duration::from_millis(20), Segment::is_rst)?;
                Ok(answer.is_some())
            })?;
            ensure!(answered, "nothing answers in the VRF ({family})");
        }
        let socket = scene.listener.socket();
        match self {
            Self::Vrf => socket.bind_device(Some(VRF.as_bytes()))?,
            Self::Member => socket.bind_device(Some(INTERFACE.as_bytes()))?,
            Self::Nothing => scene.ns.set_sysctl("net.ipv4.tcp_l3mdev_accept", "1")?,
        }
        packet_options::ask(&scene.listener, scene.family, Ask::All)?;
        Ok(())
    }
}

/// Returns the interface that a connection is bound to, and what it tells of its client's packets.
fn look(view: &View<'_>) -> Result<Vec<String>> {
    let device = SockRef::from(&view.accepted.stream).device()?;
    let device = device.map(|name| String::from_utf8_lossy(&name).into_owned());
    let mut facts = vec![format!("bound to {device:?}")];
    for message in packet_options::told(&view.accepted.stream, view.scene.family)? {
        facts.push(format!("control message {message:?}"));
    }
    Ok(facts)
}

case!(
    Default, "field.vrf.bound_to_the_vrf" =>
    each_family(|c, f| vrf(c, f, Bound::Vrf)).long(LONG)
);
case!(
    Default, "field.vrf.bound_to_a_member" =>
    each_family(|c, f| vrf(c, f, Bound::Member)).long(LONG)
);
case!(
    Default, "field.vrf.bound_to_nothing" =>
    each_family(|c, f| vrf(c, f, Bound::Nothing)).long(LONG)
);
/// Checks clients that are accepted each way, and clients that are reset.
fn vrf(context: &Context, family: Family, bound: Bound) -> Result<()> {
    let comparison = Comparison {
        prepare: &|scene| bound.prepare(scene),
        look: &look,
        ..Comparison::DEFAULT
    };
    comparison.run(context, family)?;
    comparison.resets(context, family)
}
