// SPDX-License-Identifier: MIT OR Apache-2.0

//! Kernel TLS attaches to an accepted socket and works.

use std::io::{Read, Write};
use std::time::Duration;

use accf_kit::endpoint::{Accepted, Family};
use accf_kit::ktls::{self, Key, Side};
use accf_kit::ulp;
use anyhow::{ensure, Context as _, Result};
use nix::errno::Errno;

use crate::case::{case, each_family, expect_eq, Context};
use crate::scene::{expect_filter, Client, Scene, WireScene};

const SECRET: &[u8] = b"a secret that must not be on the wire";

case!(Default, "ktls.on_an_accepted_socket" => each_family(after_data));
fn after_data(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let (mut client, _) = scene.connect_and_pause(context, Duration::from_millis(300))?;
    client.stream.write_all(b"!")?;
    let mut accepted = scene.accept(context)?;
    accepted.stream.read_exact(&mut [0])?;
    encrypt(context, scene, client, accepted)
}

case!(TwoSeconds, "ktls.on_a_socket_accepted_at_the_deadline" => each_family(at_the_deadline));
fn at_the_deadline(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let (client, _) = scene.connect_and_ack(context)?;
    scene.accept_nothing(Duration::from_secs(1), "its deadline is not over")?;
    let accepted = scene.accept(context)?;
    encrypt(context, scene, client, accepted)
}

/// Encrypts both directions; checks that the other end reads what was written, and that it is not
/// on the wire in plain.
fn encrypt(
    context: &Context,
    scene: WireScene,
    mut client: Client,
    mut accepted: Accepted,
) -> Result<()> {
    expect_filter(&accepted.stream, None, "the accepted socket's filter")?;
    match ktls::attach(&accepted.stream) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {
            return context.lacks("TLS (CONFIG_TLS)")
        }
        result => result.context("attach `tls` to the accepted socket")?,
    }
    expect_filter(
        &accepted.stream,
        Some("tls"),
        "the accepted socket's upper-layer protocol",
    )?;
    expect_filter(
        &scene.listener,
        Some(ulp::DATAREADY),
        "the listener's filter",
    )?;
    ktls::attach(&client.stream).context("attach `tls` to the client")?;
    let mut rng = context.rng();
    let mut key = || Key {
        iv: rng.u64(..).to_ne_bytes(),
        key: rng.u128(..).to_ne_bytes(),
        salt: rng.u32(..).to_ne_bytes(),
    };
    let (down, up) = (key(), key());
    for (stream, sends, receives) in [(&accepted.stream, &down, &up), (&client.stream, &up, &down)]
    {
        ktls::set_key(stream, Side::Send, sends).context("TLS_TX")?;
        ktls::set_key(stream, Side::Receive, receives).context("TLS_RX")?;
    }
    let mut buffer = [0; SECRET.len()];
    accepted.stream.write_all(SECRET)?;
    client
        .stream
        .read_exact(&mut buffer)
        .context("the client reads")?;
    expect_eq!(buffer, SECRET, "what the client reads");
    client.stream.write_all(SECRET)?;
    accepted
        .stream
        .read_exact(&mut buffer)
        .context("the server reads")?;
    expect_eq!(buffer, SECRET, "what the server reads");
    scene.judge(|trace| {
        expect_eq!(trace.syn_acks(), 1, "SYN-ACKs");
        // Type 23 is application data, and 3.3 is TLS 1.2.
        let records = trace.count(|segment| segment.payload.starts_with(&[23, 3, 3]));
        expect_eq!(records, 2, "TLS records on the wire");
        let open = trace.count(|segment| {
            segment
                .payload
                .windows(SECRET.len())
                .any(|window| window == SECRET)
        });
        ensure!(open == 0, "the secret is on the wire in plain");
        Ok(())
    })
}
