// SPDX-License-Identifier: MIT OR Apache-2.0

//! A virtual server of the kernel (IPVS), as `ipvsadm` sets it up.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result};
use nix::libc;

use crate::genl::{attribute, nested, Family};
use crate::netns::Netns;

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// By translation of addresses.
    Translated,
    /// By its hardware address: it has the clients' address and port as well.
    Direct,
}

/// Names a service: TCP, and the address that clients know (`IPVS_SVC_ATTR_*`).
fn name(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    [
        attribute(1, &(family as u16).to_ne_bytes()),
        attribute(2, &(libc::IPPROTO_TCP as u16).to_ne_bytes()),
        attribute(3, &octets(address.ip())),
        attribute(4, &address.port().to_be_bytes()),
    ]
    .concat()
}

/// Returns an address as the kernel keeps one of either family.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Returns what else a service has: clients go to one server after another, whatever came before.
fn settings(address: SocketAddr) -> Vec<u8> {
    // A mask, or the length of a prefix.
    let mask = if address.is_ipv4() { u32::MAX } else { 128 };
    [
        attribute(6, b"rr\0"),
        // A `struct ip_vs_flags`.
        attribute(7, &[0; 8]),
        attribute(8, &[0; 4]),
        attribute(9, &mask.to_ne_bytes()),
    ]
    .concat()
}

/// Returns a server (`IPVS_DEST_ATTR_*`).
fn destination(address: SocketAddr, forwarding: Forwarding) -> Vec<u8> {
    let method: u32 = match forwarding {
        Forwarding::Translated => 0,
        Forwarding::Direct => 3,
    };
    [
        attribute(1, &octets(address.ip())),
        attribute(2, &address.port().to_be_bytes()),
        attribute(3, &method.to_ne_bytes()),
        // The weight; no thresholds.
        attribute(4, &1_u32.to_ne_bytes()),
        attribute(5, &[0; 4]),
        attribute(6, &[0; 4]),
    ]
    .concat()
}

/// Has a namespace hand the TCP clients of one address and port to another of the same family.
pub fn forward(ns: &Netns, from: SocketAddr, to: SocketAddr, forwarding: Forwarding) -> Result<()> {
    const NEW_SERVICE: u8 = 1;
    const NEW_DESTINATION: u8 = 5;
    const SERVICE: u16 = 1;
    const DESTINATION: u16 = 2;
    // Netlink does not load the module.
    Command::new("modprobe")
        .args(["-q", "ip_vs"])
        .status()
        .context("start `modprobe`")?;
    ns.run(|| {
        let ipvs = Family::open_here("IPVS").context("the family IPVS (CONFIG_IP_VS)")?;
        let service = nested(SERVICE, &[name(from), settings(from)].concat());
        ipvs.tell(NEW_SERVICE, &service)
            .context("IPVS_CMD_NEW_SERVICE")?;
        let service = nested(SERVICE, &name(from));
        let destination = nested(DESTINATION, &destination(to, forwarding));
        ipvs.tell(NEW_DESTINATION, &[service, destination].concat())
            .context("IPVS_CMD_NEW_DEST")
    })
}

/// Returns how many connections the virtual servers of a namespace know.
pub fn connections(ns: &Netns) -> Result<usize> {
    // The first line is the headings.
    Ok(ns.proc_net("ip_vs_conn")?.lines().skip(1).count())
}
