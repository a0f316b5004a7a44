// SPDX-License-Identifier: MIT OR Apache-2.0

//! Listeners on addresses that are not the machine's own (`IP_TRANSPARENT`): a connection is the
//! same as at a plain listener, whichever way it was accepted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use accf_kit::endpoint::Family;
use accf_kit::raw::{RawClient, INTERFACE};
use anyhow::Result;
use socket2::SockRef;

use crate::case::{case, each_family, Context};
use crate::scene::RawScene;
use crate::ways::{Comparison, View, LONG};

/// Where the clients connect to: of a network that is nowhere.
const FOREIGN_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const FOREIGN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 9);

/// How the clients' packets get to the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// The foreign network is local.
    Network,
    /// Everything is local that comes in by the clients' interface, as a transparent proxy has it.
    Interface,
}

impl Route {
    fn prepare(self, scene: &RawScene) -> Result<()> {
        let v4 = scene.family.is_v4_on_the_wire();
        let family = if v4 { "-4" } else { "-6" };
        let network = if v4 {
            "203.0.113.0/24"
        } else {
            "2001:db8:99::/64"
        };
        let ip = |arguments: &str| {
            let mut all = vec![family];
            all.extend(arguments.split(' '));
            scene.ns.command("ip", &all).map(drop)
        };
        match self {
            Self::Network => ip(&format!("route add local {network} dev lo"))?,
            Self::Interface => {
                ip(&format!("rule add iif {INTERFACE} lookup 100"))?;
                ip("route add local default dev lo table 100")?;
            }
        }
        let socket = SockRef::from(&scene.listener);
        if scene.family == Family::V4 {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
        Ok(())
    }
}

fn foreign(family: Family) -> IpAddr {
    family.pick(FOREIGN_V4, FOREIGN_V6)
}

fn to_foreign(scene: &RawScene, client: &mut RawClient) -> Result<()> {
    client.server.set_ip(foreign(scene.family));
    Ok(())
}

/// Returns the address that a connection has here.
fn look(view: &View<'_>) -> Result<Vec<String>> {
    Ok(vec![view.accepted.stream.local_addr()?.ip().to_string()])
}

case!(
    Default, "field.transparent.network" =>
    each_family(|c, f| transparent(c, f, Route::Network)).long(LONG)
);
case!(
    Default, "field.transparent.interface" =>
    each_family(|c, f| transparent(c, f, Route::Interface)).long(LONG)
);
/// Checks clients that are accepted each way, and clients that are reset.
fn transparent(context: &Context, family: Family, route: Route) -> Result<()> {
    let comparison = Comparison {
        prepare: &|scene| route.prepare(scene),
        client: &to_foreign,
        look: &look,
        ..Comparison::DEFAULT
    };
    comparison.run(context, family)?;
    comparison.resets(context, family)
}
