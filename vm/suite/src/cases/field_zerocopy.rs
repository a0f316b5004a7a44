// SPDX-License-Identifier: MIT OR Apache-2.0

//! An accepted socket sends without a copy (`IORING_OP_SEND_ZC`), as that of a plain listener does.
//!
//! `TCP_ULP` clears the bit of the listener that says so, and accepted sockets inherit the bit.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use accf_kit::endpoint::{Family, Listen};
use accf_kit::zerocopy::{self, ZeroCopySent};
use accf_kit::{ktls, ulp};
use anyhow::{Context as _, Result};
use nix::errno::Errno;

use crate::case::{case, each_family, expect_eq, Context};
use crate::scene::{errno, LoopbackScene, Scene};

/// What the server sends: more than one segment.
const BODY: &[u8] = &[b'z'; 5000];

case!(Default, "field.zerocopy.by_data" => each_family(by_data));
fn by_data(context: &Context, family: Family) -> Result<()> {
    let filtered = Listen::filtered(family);
    for (listen, what) in [
        (Listen::plain(family), "plain"),
        (filtered.clone(), "filtered"),
        (filtered.filter_after_listen(), "filtered after listen()"),
    ] {
        let scene = LoopbackScene::new(context, family, &listen)?;
        let mut client = scene.connect()?;
        client.stream.write_all(b"!")?;
        let accepted = scene.accept(context)?;
        sends(context, &accepted.stream, &mut client.stream, what)?;
    }
    Ok(())
}

case!(TwoSeconds, "field.zerocopy.at_the_deadline" => each_family(at_the_deadline));
fn at_the_deadline(context: &Context, family: Family) -> Result<()> {
    for (listen, what) in [
        (Listen::plain(family), "plain"),
        (Listen::filtered(family), "filtered"),
    ] {
        let scene = LoopbackScene::new(context, family, &listen)?;
        let mut client = scene.connect()?;
        if what == "filtered" {
            scene.accept_nothing(Duration::from_secs(1), "its deadline is not over")?;
        }
        let accepted = scene.accept(context)?;
        sends(context, &accepted.stream, &mut client.stream, what)?;
    }
    Ok(())
}

case!(Default, "field.zerocopy.not_with_ktls" => each_family(not_with_ktls));
/// Checks that `tls` on an accepted socket turns it off there, and nowhere else.
fn not_with_ktls(context: &Context, family: Family) -> Result<()> {
    for (listen, what) in [
        (Listen::plain(family), "plain"),
        (Listen::filtered(family), "filtered"),
    ] {
        let scene = LoopbackScene::new(context, family, &listen)?;
        let mut client = scene.connect()?;
        client.stream.write_all(b"!")?;
        let accepted = scene.accept(context)?;
        match ktls::attach(&accepted.stream) {
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {
                return context.lacks("TLS (CONFIG_TLS)")
            }
            result => result.context("attach `tls` to the accepted socket")?,
        }
        let refused = errno(sent(context, &accepted.stream)?)?;
        expect_eq!(
            refused,
            Some(Errno::EOPNOTSUPP),
            "IORING_OP_SEND_ZC with TLS ({what})"
        );

        let mut next = scene.connect()?;
        next.stream.write_all(b"!")?;
        let accepted = scene.accept(context)?;
        sends(context, &accepted.stream, &mut next.stream, what)?;
    }
    Ok(())
}

case!(Default, "field.zerocopy.where_the_filter_is_refused" => each_family(refused));
/// Checks that a connection to which the filter cannot be attached loses nothing by the attempt.
fn refused(context: &Context, family: Family) -> Result<()> {
    let scene = LoopbackScene::filtered(context, family)?;
    let mut client = scene.connect()?;
    client.stream.write_all(b"!")?;
    let accepted = scene.accept(context)?;
    let attached = errno(ulp::attach(&accepted.stream, ulp::DATAREADY))?;
    expect_eq!(
        attached,
        Some(Errno::EOPNOTSUPP),
        "the filter on a connection"
    );
    sends(context, &accepted.stream, &mut client.stream, "refused")
}

/// Checks that an accepted socket sends [`BODY`] without a copy, and that it reaches the client.
fn sends(
    context: &Context,
    accepted: &TcpStream,
    client: &mut TcpStream,
    what: &str,
) -> Result<()> {
    let sent = sent(context, accepted)?.with_context(|| format!("IORING_OP_SEND_ZC ({what})"))?;
    let whole = ZeroCopySent {
        bytes: BODY.len(),
        notified: true,
    };
    expect_eq!(sent, whole, "what was sent ({what})");
    let mut received = vec![0; BODY.len()];
    client
        .read_exact(&mut received)
        .context("the client reads")?;
    expect_eq!(received, BODY, "what the client reads ({what})");
    Ok(())
}

/// Sends [`BODY`] without a copy; the inner error is the operation's.
fn sent(context: &Context, accepted: &TcpStream) -> Result<io::Result<ZeroCopySent>> {
    let result = zerocopy::send(accepted, BODY);
    let number = result.as_ref().err().and_then(io::Error::raw_os_error);
    if matches!(
        number.map(Errno::from_raw),
        Some(Errno::ENOSYS | Errno::EPERM)
    ) {
        context.lacks("io_uring (CONFIG_IO_URING)")?;
    }
    Ok(result)
}
