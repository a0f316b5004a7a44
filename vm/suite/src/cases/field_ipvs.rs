// SPDX-License-Identifier: MIT OR Apache-2.0

//! IPVS in front of a listener of the same machine: a connection is the same as at a plain
//! listener, whichever way it was accepted.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use accf_kit::endpoint::Family;
use accf_kit::ipvs;
use accf_kit::raw::RawClient;
use anyhow::{bail, Result};

use crate::case::{case, families, Context, Kernel, Skip};
use crate::scene::{RawScene, Scene};
use crate::ways::{Comparison, View, LONG};

/// The port that the clients connect to.
const VIRTUAL_PORT: u16 = 8000;
/// The address of the listener, behind the one that the clients know.
const REAL: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);

fn prepare(scene: &RawScene) -> Result<()> {
    scene.ns.ip(&format!("addr add {REAL}/32 dev lo"))?;
    let SocketAddr::V4(from) = scene.host.server_address(Family::V4, VIRTUAL_PORT) else {
        bail!("not an IPv4 address");
    };
    let to = SocketAddrV4::new(REAL, scene.port());
    ipvs::forward(&scene.ns, from, to)
}

fn to_virtual(_: &RawScene, client: &mut RawClient) -> Result<()> {
    client.server.set_port(VIRTUAL_PORT);
    Ok(())
}

/// Returns the addresses that a connection has.
fn look(view: &View<'_>) -> Result<Vec<String>> {
    Ok(vec![
        view.accepted.stream.local_addr()?.ip().to_string(),
        view.accepted.stream.peer_addr()?.ip().to_string(),
    ])
}

case!(
    Default, "field.ipvs" =>
    families(&[Family::V4, Family::Mapped], behind).long(LONG)
);
/// Checks clients that are accepted each way, and clients that are reset.
fn behind(context: &Context, family: Family) -> Result<()> {
    if context.kernel == Kernel::Dev {
        return Err(Skip("this kernel has no IPVS (CONFIG_IP_VS)".to_owned()).into());
    }
    let comparison = Comparison {
        prepare: &prepare,
        client: &to_virtual,
        look: &look,
        ..Comparison::DEFAULT
    };
    comparison.run(context, family)?;
    comparison.resets(context, family)
}
