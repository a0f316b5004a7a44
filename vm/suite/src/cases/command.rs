// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command `accf`: what it prints of other processes' listeners, and its exit status.

use std::process::{Command, Output};

use accf_kit::control::{settings, OnTimeout};
use accf_kit::endpoint::{Family, Listen};
use accf_kit::netns::Netns;
use anyhow::{ensure, Context as _, Result};

use crate::case::{case, each_family, expect_eq, once, Context};
use crate::scene::{RawScene, Scene};

/// Runs the command in a namespace.
pub(crate) fn accf(ns: &Netns, arguments: &[&str]) -> Result<Output> {
    ns.run(|| {
        Command::new("accf")
            .args(arguments)
            .output()
            .context("start accf, which guests have in their PATH")
    })
}

/// Returns what the command prints; fails if it does not succeed.
fn shown(ns: &Netns, arguments: &[&str]) -> Result<String> {
    let output = accf(ns, arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && errors.is_empty(),
        "accf {arguments:?} ended with {}: {errors}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

case!(Default, "command.shows_listeners" => each_family(shows));
/// Checks that a listener with a filter is listed with its counts, and one without is not.
fn shows(context: &Context, family: Family) -> Result<()> {
    let config = settings(61_500, 9, OnTimeout::Drop);
    let scene = RawScene::new(context, family, &Listen::filtered(family).config(config))?;
    let plain = Listen::plain(family).open(&scene.ns)?;
    let (_parked, _) = scene.served_reset_and_parked(context)?;
    let port = format!(":{}", scene.port());

    let list = shown(&scene.ns, &["list"])?;
    let lines: Vec<&str> = list.lines().filter(|line| line.contains(':')).collect();
    expect_eq!(lines.len(), 1, "listeners in\n{list}");
    let words: Vec<&str> = lines[0]
        .split_whitespace()
        .skip_while(|w| !w.contains(':'))
        .collect();
    ensure!(
        words
            .first()
            .is_some_and(|address| address.ends_with(&port)),
        "another address in\n{list}"
    );
    let cells = words.get(1..).unwrap_or_default().join(" ");
    expect_eq!(cells, "dataready 61.5 s drop 1 9 3 1 0 0", "what is listed");

    let page = shown(&scene.ns, &["stats", &port])?;
    for line in [
        "timeout 61.5 s, then the connection is forgotten",
        "accepted when data came 1",
        "ended by the client, ICMP or the administrator 1",
    ] {
        let said = page
            .lines()
            .any(|said| said.split_whitespace().eq(line.split_whitespace()));
        ensure!(said, "not said: {line}, but\n{page}");
    }
    ensure!(
        page.contains('█'),
        "no bar for the client that sent data in\n{page}"
    );

    let json = shown(&scene.ns, &["stats", "--json", &port])?;
    for line in [
        "\"timeout_ms\": 61500,",
        "\"on_timeout\": \"drop\"",
        "\"parked\": 1,",
        "\"parked_total\": 3,",
        "\"aborted\": 1,",
    ] {
        ensure!(json.contains(line), "no {line} in\n{json}");
    }

    let output = accf(&scene.ns, &["stats", &format!(":{}", plain.port())])?;
    expect_eq!(output.status.code(), Some(3), "status for a plain listener");
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        errors.contains(&port),
        "the listener that there is is not named: {errors}"
    );
    Ok(())
}

case!(Default, "command.says_that_there_is_none" => once(|_| says_none(0)));
case!(Unloaded, "command.says_that_the_module_is_not_loaded" => once(|_| says_none(4)));
/// Checks that the command says in words that no listener has a filter, and its exit status.
fn says_none(status: i32) -> Result<()> {
    let output = accf(&Netns::new()?, &["list"])?;
    expect_eq!(output.status.code(), Some(status), "status");
    ensure!(output.stdout.is_empty(), "something is listed");
    let errors = String::from_utf8_lossy(&output.stderr);
    expect_eq!(
        errors.contains("not loaded"),
        status == 4,
        "whether the module is at fault in: {errors}"
    );
    Ok(())
}
