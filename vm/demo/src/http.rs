// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scenario (c): a load balancer that opens connections ahead of need, in front of real one-worker
//! HTTP servers.
//!
//! The servers are the packaged ones, unmodified. Their standard input is the listening socket.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use accf_demo::{HttpServer, Listener, ServedRequest};
use accf_kit::clock::Pulse;
use accf_kit::endpoint::{self, Family};
use accf_kit::netns;
use accf_kit::wire::Wire;
use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::repeat::best_run;
use crate::setup::Setup;

const IDLE_CONNECTIONS: usize = 5;
/// curl's limit for the response.
const MAX_TIME: Duration = Duration::from_secs(20);
/// The time after which gunicorn kills a worker that does not respond.
const WORKER_TIMEOUT: Duration = Duration::from_secs(5);
/// The limit for a server's first response; an emulated machine is slow.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How late the machine may be while a response time of some 100 ms is measured.
const TOLERABLE: Duration = Duration::from_millis(50);
/// The time between the load balancer's connections and the request.
const IDLE_BEFORE: Duration = Duration::from_millis(500);

/// Runs the scenario for each server and each listener.
pub(crate) fn run(wire: &Wire, setups: &[Setup], pulse: &Pulse) -> Result<Vec<ServedRequest>> {
    let directory = Directory::new()?;
    let mut running = Vec::new();
    for server in HttpServer::ALL {
        for setup in setups {
            running.push(Running::start(wire, server, *setup, &directory.0)?);
        }
    }
    for server in &running {
        server.warm_up(wire)?;
    }
    crate::say("(c) load balancer and one-worker servers: sending requests");
    // One after the other, so that they do not share the processor. Those with a plain listener
    // will be blocked by the idle connections: they run last, together.
    let (stuck, quick): (Vec<_>, Vec<_>) = running
        .into_iter()
        .partition(|running| running.setup.listener == Listener::Plain);
    let mut requests = Vec::new();
    for server in quick {
        let mut best = best_run(pulse, TOLERABLE, || server.measure(wire))?;
        let (late_us, runs) = (best.late_us(), best.runs);
        (best.result.machine_late_us, best.result.runs) = (late_us, runs);
        requests.push(best.result);
    }
    // They take seconds: a late machine does not matter.
    let stuck: Vec<_> = stuck
        .into_iter()
        .map(|server| {
            let wire = wire.clone();
            thread::spawn(move || server.measure(&wire))
        })
        .collect();
    for server in stuck {
        requests.push(netns::join(server)?);
    }
    Ok(requests)
}

/// A running HTTP server; dropping it ends it and all its processes.
struct Running {
    server: HttpServer,
    setup: Setup,
    address: SocketAddr,
    log: PathBuf,
    child: Child,
}

impl Running {
    fn start(wire: &Wire, server: HttpServer, setup: Setup, directory: &Path) -> Result<Self> {
        let listener = setup.open(&wire.server)?;
        let address = wire.server_address(Family::V4, listener.port());
        let socket = listener.socket();
        socket.set_nonblocking(false)?;
        let log = directory.join(format!("{}-{}.log", server.key(), setup.listener.key()));
        let mut command = match server {
            HttpServer::PythonHttpServer => {
                let mut command = Command::new("python3");
                command.args(["-c", include_str!("http_server.py")]);
                command
            }
            HttpServer::Gunicorn => {
                let mut command = Command::new("gunicorn");
                command.args([
                    "--bind",
                    "fd://0",
                    "--workers",
                    "1",
                    "--worker-class",
                    "sync",
                ]);
                command.args(["--timeout", &WORKER_TIMEOUT.as_secs().to_string()]);
                command.arg("wsgiref.simple_server:demo_app");
                command
            }
        };
        let errors = File::create(&log)?;
        command
            .current_dir(directory)
            .stdin(Stdio::from(socket.as_fd().try_clone_to_owned()?))
            .stdout(Stdio::from(OwnedFd::from(errors.try_clone()?)))
            .stderr(Stdio::from(OwnedFd::from(errors)))
            .process_group(0);
        let child = wire.server.run(|| {
            command
                .spawn()
                .with_context(|| format!("cannot start {}: is it installed?", server.title()))
        })?;
        Ok(Self {
            server,
            setup,
            address,
            log,
            child,
        })
    }

    fn what(&self) -> String {
        format!("(c) {}, {}", self.server.title(), self.setup.describe())
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// Waits until it has answered twice: at the first request it may still be loading code.
    fn warm_up(&self, wire: &Wire) -> Result<()> {
        let begun = Instant::now();
        let mut answers = 0;
        while answers < 2 {
            let curl = Curl::run(wire, self.address)?;
            if curl.http_code == 200 {
                answers += 1;
            } else if begun.elapsed() > START_LIMIT {
                bail!(
                    "{}: does not answer (curl: exit status {}, HTTP status {}); its log:\n{}",
                    self.what(),
                    curl.exitcode,
                    curl.http_code,
                    self.log()
                );
            }
        }
        Ok(())
    }

    /// Opens the idle connections and makes the real request.
    fn measure(&self, wire: &Wire) -> Result<ServedRequest> {
        let idle = wire.client.run(|| {
            let connect = |_| endpoint::connect_here(self.address);
            (0..IDLE_CONNECTIONS)
                .map(connect)
                .collect::<Result<Vec<_>>>()
        });
        let idle = idle.with_context(|| self.what())?;
        thread::sleep(IDLE_BEFORE);
        let curl = Curl::run(wire, self.address)?;
        let idle_ports = idle.iter().map(|stream| Ok(stream.local_addr()?.port()));
        let idle_ports = idle_ports.collect::<io::Result<_>>()?;
        let answered = curl.http_code != 0;
        Ok(ServedRequest {
            listener: self.setup.listener,
            setting: self.setup.describe(),
            server: self.server,
            server_port: self.address.port(),
            idle_ports,
            curl_port: (curl.local_port != 0).then_some(curl.local_port),
            max_time_ms: u64::try_from(MAX_TIME.as_millis())?,
            worker_timeout_ms: match self.server {
                HttpServer::PythonHttpServer => None,
                HttpServer::Gunicorn => Some(u64::try_from(WORKER_TIMEOUT.as_millis())?),
            },
            time_to_first_byte_ms: answered.then_some(curl.time_starttransfer * 1e3),
            total_ms: curl.time_total * 1e3,
            http_status: answered.then_some(curl.http_code),
            curl_exit: curl.exitcode,
            workers_killed: u32::try_from(self.log().matches("WORKER TIMEOUT").count())?,
            machine_late_us: 0,
            runs: 1,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // An error means that the processes have ended already.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// The output of `curl --write-out '%{json}'`.
#[derive(Debug, Deserialize)]
struct Curl {
    exitcode: i32,
    http_code: u16,
    local_port: u16,
    time_starttransfer: f64,
    time_total: f64,
}

impl Curl {
    /// Requests `/` from inside the client's namespace.
    fn run(wire: &Wire, server: SocketAddr) -> Result<Self> {
        let max_time = MAX_TIME.as_secs().to_string();
        let url = format!("http://{server}/");
        let output = wire.client.run(|| {
            Command::new("curl")
                .args(["--silent", "--output", "/dev/null", "--noproxy", "*"])
                .args(["--max-time", &max_time, "--write-out", "%{json}", &url])
                .output()
                .context("cannot start curl: is it installed?")
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            !text.is_empty(),
            "curl printed nothing: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_str(&text).with_context(|| format!("curl printed: {text}"))
    }
}

/// A directory that the servers serve and log to; removed on drop.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("accf-demo-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let directory = Self(path);
        fs::write(directory.0.join("index.html"), "hello\n")?;
        Ok(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
