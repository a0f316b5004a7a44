// SPDX-License-Identifier: MIT OR Apache-2.0

//! Listeners on addresses that are not the machine's own (`IP_TRANSPARENT`): a connection is the
//! same as at a plain listener, whichever way it was accepted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use accf_kit::endpoint::Family;
use accf_kit::raw::{RawClient, INTERFACE};
use anyhow::Result;
use socket2::SockRef;

use super::field_plug;
use crate::case::{case, each_family, expect_eq, Context, Kernel, Skip};
use crate::scene::{RawScene, Scene};
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
    /// What goes to one port is handed to the listener's (`tproxy` of nftables).
    Tproxy,
}

/// The port that the clients connect to, where it is not the listener's.
const TPROXY_PORT: u16 = 8000;

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
            Self::Tproxy => {
                ip("rule add fwmark 1 lookup 100")?;
                ip("route add local default dev lo table 100")?;
                let rules = format!(
                    "table inet transparent {{\n\
                     chain prerouting {{\n\
                     type filter hook prerouting priority mangle\n\
                     tcp dport {TPROXY_PORT} tproxy to :{} meta mark set 1 accept\n\
                     }}\n\
                     }}",
                    scene.port()
                );
                scene.ns.feed("nft", &["-f", "-"], &rules)?;
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

fn to_foreign(scene: &RawScene, client: &mut RawClient, route: Route) -> Result<()> {
    client.server.set_ip(foreign(scene.family));
    if route == Route::Tproxy {
        client.server.set_port(TPROXY_PORT);
    }
    Ok(())
}

/// Returns the address that a connection has here, and what else is known of it.
fn look(view: &View<'_>, route: Route) -> Result<Vec<String>> {
    let local = view.accepted.stream.local_addr()?;
    let port = match route {
        Route::Tproxy => TPROXY_PORT,
        Route::Network | Route::Interface => view.scene.port(),
    };
    expect_eq!(local.port(), port, "the port that the client connected to");
    let mut facts = vec![local.ip().to_string()];
    facts.extend(field_plug::look(view)?);
    Ok(facts)
}

case!(
    Default, "field.transparent.network" =>
    each_family(|c, f| transparent(c, f, Route::Network)).long(LONG)
);
case!(
    Default, "field.transparent.interface" =>
    each_family(|c, f| transparent(c, f, Route::Interface)).long(LONG)
);
case!(
    Default, "field.transparent.tproxy" =>
    each_family(|c, f| transparent(c, f, Route::Tproxy)).long(LONG)
);
/// Checks clients that are accepted each way, clients that are reset, and one that resets.
fn transparent(context: &Context, family: Family, route: Route) -> Result<()> {
    if route == Route::Tproxy && context.kernel == Kernel::Dev {
        return Err(Skip("this kernel has no tproxy (CONFIG_NFT_TPROXY)".to_owned()).into());
    }
    let comparison = Comparison {
        prepare: &|scene| {
            field_plug::prepare(scene)?;
            route.prepare(scene)
        },
        client: &|scene, client| to_foreign(scene, client, route),
        look: &|view| look(view, route),
        ..Comparison::DEFAULT
    };
    comparison.run(context, family)?;
    comparison.resets(context, family)?;
    comparison.aborts(context, family)
}
