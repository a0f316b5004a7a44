// SPDX-License-Identifier: MIT OR Apache-2.0
//! Server processes that share a port, and are killed; their requests migrate to the others, or do
//! not.
//!
//! All of them have the filter. With a listener beside them that has none, the module may stay
//! loaded for good, as is known: the kernel clones requests to where nothing tells the module that
//! they are over.
//!
//! Requests may migrate to each of them; its counts then no longer come to zero
//! (`account::at_rest_after_migration()`).

use std::io::{Read, Write};
use std::process::{Child, ExitCode, Stdio};
use std::thread::sleep;
use std::time::Duration;

use accf_kit::account::{at_rest_after_migration, stats};
use accf_kit::clients::Target;
use accf_kit::control::{set_config, settings, OnTimeout};
use accf_kit::endpoint::{Family, Listen};
use accf_kit::netns::Netns;
use accf_kit::server::Server;
use anyhow::{bail, ensure, Context as _, Result};
use nix::fcntl::{fcntl, FcntlArg, OFlag};

use crate::ecn::Ecn;
use crate::random::{any_family, any_settings};
use crate::round::Round;
use crate::socket_clients::run_clients;

const PLACE: &str = "a group of servers that are killed";

/// How many processes there are.
const MEMBERS: usize = 3;
/// Below the ports that clients get: a process that opens it again finds it free.
const PORT: u16 = 8000;
const MIGRATE: &str = "net.ipv4.tcp_migrate_req";

pub(crate) fn run(round: &Round<'_>) -> Result<()> {
    let mut rng = round.rng(PLACE);
    let ns = round.namespace()?;
    let ecn = Ecn::at_random(round, &mut rng, &ns, &ns)?;
    let family = any_family(&mut rng);
    let mut members = Vec::new();
    for _ in 0..MEMBERS {
        members.push(Member::start(round, &ns, family, rng.u64(..))?);
    }
    let target = Target::that_changes(family.loopback(PORT), Duration::from_secs(2));
    round.begin();
    run_clients(round, PLACE, &ns, vec![target], || {
        if !round.pause(&mut rng, Duration::from_secs(2) * round.patience.min(2)) {
            sleep(Duration::from_millis(20));
            return Ok(());
        }
        let migrate = if rng.bool() { "1" } else { "0" };
        ns.set_sysctl(MIGRATE, migrate)?;
        round.board.event("tcp_migrate_req set");
        let victim = rng.usize(..members.len());
        drop(members.swap_remove(victim));
        round.board.event("server processes killed");
        members.push(Member::start(round, &ns, family, rng.u64(..))?);
        Ok(())
    })?;
    ecn.report(round)?;
    for member in members {
        member.finish()?;
        round
            .board
            .event("listeners at rest with nothing left, and sums that are right");
    }
    Ok(())
}

/// A server process. Dropped, it is killed.
struct Member {
    process: Child,
}

impl Member {
    fn start(round: &Round<'_>, ns: &Netns, family: Family, seed: u64) -> Result<Self> {
        let mut process = ns.run(|| {
            round
                .program
                .command()
                .args(["serve", "--family", &family.to_string()])
                .args(["--port", &PORT.to_string(), "--seed", &seed.to_string()])
                .args(["--patience", &round.limit().as_secs().to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("start a server process")
        })?;
        let mut output = process.stdout.take().context("no output")?;
        let member = Self { process };
        // It writes a byte once it listens.
        output
            .read_exact(&mut [0])
            .context("a server process did not begin to listen")?;
        Ok(member)
    }

    /// Lets it come to rest, and end.
    fn finish(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let status = self.process.wait()?;
        ensure!(
            status.success(),
            "a server process did not come to rest: {status}; what it said is above"
        );
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a server process: serves until its input ends, and comes to rest.
pub(crate) fn serve(family: &str, port: u16, seed: u64, limit: Duration) -> Result<ExitCode> {
    let family = Family::ALL
        .into_iter()
        .find(|it| it.to_string() == family)
        .with_context(|| format!("there is no family {family}"))?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let listener = Listen::filtered(family)
        .backlog(1024)
        .reuse_port()
        .port(port)
        .config(any_settings(&mut rng))
        .open_here()?;
    let mut output = std::io::stdout();
    output.write_all(b"!")?;
    output.flush()?;
    let mut server = Server::new()?;
    let copy = listener.socket().try_clone()?;
    server.add(listener)?;
    let mut input = std::io::stdin();
    fcntl(&input, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut byte = [0];
    loop {
        server.step(Duration::from_millis(50))?;
        match input.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => bail!("a server process got input"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("the input"),
        }
        if rng.u8(..20) == 0 {
            set_config(&copy, &any_settings(&mut rng))?;
        }
        stats(&copy)?;
    }
    set_config(&copy, &settings(1, 0, OnTimeout::Reset))?;
    server
        .settle_as(0, limit, at_rest_after_migration)
        .context("a member of a group of servers")?;
    Ok(ExitCode::SUCCESS)
}
