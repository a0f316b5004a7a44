// SPDX-License-Identifier: MIT OR Apache-2.0

//! IPVS in front of a listener of the same machine: a connection is the same as at a plain
//! listener, whichever way it was accepted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use accf_kit::endpoint::Family;
use accf_kit::ipvs::{self, Forwarding};
use accf_kit::raw::RawClient;
use anyhow::{ensure, Result};

use super::field_plug;
use crate::case::{case, each_family, Context, Kernel, Skip};
use crate::scene::{RawScene, Scene};
use crate::ways::{Comparison, View, LONG};

/// The port that the clients connect to, where it is not the listener's.
const VIRTUAL_PORT: u16 = 8000;
/// The address of the listener, behind the one that the clients know.
const REAL_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
const REAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

fn real(family: Family) -> IpAddr {
    family.pick(REAL_V4, REAL_V6)
}

/// Returns the port that the clients connect to.
fn port(scene: &RawScene, forwarding: Forwarding) -> u16 {
    match forwarding {
        Forwarding::Translated => VIRTUAL_PORT,
        Forwarding::Direct => scene.port(),
    }
}

fn prepare(scene: &RawScene, forwarding: Forwarding) -> Result<()> {
    field_plug::prepare(scene)?;
    let ip = real(scene.family);
    let length = if ip.is_ipv4() { "32" } else { "128 nodad" };
    scene.ns.ip(&format!("addr add {ip}/{length} dev lo"))?;
    let from = scene
        .host
        .server_address(scene.family, port(scene, forwarding));
    let to = SocketAddr::new(ip, scene.port());
    ipvs::forward(&scene.ns, from, to, forwarding)
}

fn to_virtual(scene: &RawScene, client: &mut RawClient, forwarding: Forwarding) -> Result<()> {
    client.server.set_port(port(scene, forwarding));
    Ok(())
}

/// Returns the addresses that a connection has, and what else is known of it.
fn look(view: &View<'_>) -> Result<Vec<String>> {
    ensure!(
        ipvs::connections(&view.scene.ns)? > 0,
        "the client did not come by the virtual server"
    );
    let mut facts = vec![
        view.accepted.stream.local_addr()?.ip().to_string(),
        view.accepted.stream.peer_addr()?.ip().to_string(),
    ];
    facts.extend(field_plug::look(view)?);
    Ok(facts)
}

case!(
    Default, "field.ipvs.translated" =>
    each_family(|c, f| behind(c, f, Forwarding::Translated)).long(LONG)
);
case!(
    Default, "field.ipvs.direct" =>
    each_family(|c, f| behind(c, f, Forwarding::Direct)).long(LONG)
);
/// Checks clients that are accepted each way, clients that are reset, and one that resets.
fn behind(context: &Context, family: Family, forwarding: Forwarding) -> Result<()> {
    if context.kernel == Kernel::Dev {
        return Err(Skip("this kernel has no IPVS (CONFIG_IP_VS)".to_owned()).into());
    }
    let comparison = Comparison {
        prepare: &|scene| prepare(scene, forwarding),
        client: &|scene, client| to_virtual(scene, client, forwarding),
        look: &look,
        ..Comparison::DEFAULT
    };
    comparison.run(context, family)?;
    comparison.resets(context, family)?;
    comparison.aborts(context, family)
}
