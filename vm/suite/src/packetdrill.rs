// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs packetdrill scripts in this guest: each plain, and with the filter on its listeners.
//!
//! `cargo xtask packetdrill` has rewritten the scripts, and reads the results. See
//! `docs/testing.md` for what the verdicts mean.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;
use serde_json::json;

/// How often a variant may fail before that counts: on a loaded or emulated machine a script also
/// fails because a segment was late.
const TRIES: u32 = 3;

/// How many scripts run beside each other. They wait most of the time, each in a namespace of its
/// own.
const JOBS: usize = 6;

/// The time limit of one run. The longest of the kernel's scripts take some ten seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// How long to wait before looking again whether a program has ended.
const POLL: Duration = Duration::from_millis(20);

/// The kernel's directory of the scripts has these files, which scripts run by relative paths.
const HELPERS: [&str; 2] = ["defaults.sh", "set_sysctls.py"];

/// The program that sets the size of the interface's packets for packetdrill, which starts
/// `ifconfig`. Guests have it as a part of busybox.
const BUSYBOX: &str = "/usr/bin/busybox";

/// A shell function that takes the place of the program `sysctl` in `defaults.sh`: it writes the
/// same files without starting a process for each, which takes seconds on an emulated processor.
const SYSCTL: &str = r#"
sysctl() {
    local word name
    for word; do
        case $word in
            *=*)
                name=${word%%=*}
                printf '%s\n' "${word#*=}" >"/proc/sys/${name//.//}"
                ;;
        esac
    done
}
"#;

/// What packetdrill says of an `accept()` that found no connection.
const NOTHING_TO_ACCEPT: &str = "in accept call: Expected non-negative result but got -1 with \
                                 errno 11";

/// What packetdrill says where an event needs the result of an `accept()` that blocks beside it and
/// has not returned.
const NOT_ACCEPTED: &str = "unable to find fd with script fd";

/// What packetdrill says of the call after an `accept()` that blocks for too long.
const LATE_CALL: &str = "timing error: expected system call start";

/// A form of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// As the kernel has it.
    Plain,
    /// With the filter on each listener.
    Filtered,
    /// The same, and `accept()` is called after the client's first data.
    AfterData,
    /// The same, and the listener has a deadline of some milliseconds.
    Deadline,
}

impl Variant {
    /// Returns the name of the directory of such scripts.
    fn directory(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Filtered => "dataready",
            Self::AfterData => "after-data",
            Self::Deadline => "deadline",
        }
    }
}

/// What is found out about a script and a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It passes with the filter as it stands, or in one of the two other forms.
    Passed(Variant),
    /// It fails without the filter.
    Skipped,
    /// It passes without the filter, and fails with it.
    Failed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed(Variant::AfterData) => "passed (accept after data)",
            Self::Passed(Variant::Deadline) => "passed (deadline)",
            Self::Passed(_) => "passed",
            Self::Skipped => "skipped",
            Self::Failed => "FAILED",
        })
    }
}

/// How a run ended: with the message of packetdrill if it failed.
type Outcome = std::result::Result<(), String>;

/// A verdict, and what led to it.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    /// The message of each run that failed, with the variant's name.
    messages: Vec<String>,
}

/// Whether a run may take place beside those of other scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    Others,
    Nothing,
}

/// Finds the verdict on a script. `run` runs a variant, and returns nothing if there is none.
///
/// What fails is repeated alone, when no other script can make it late.
///
/// The two other forms are tried only if an `accept()` found no connection, or blocks for too long:
/// only then can the script's expectation of an early connection be what failed. `blocks` says
/// whether one blocks.
fn judge(
    blocks: bool,
    mut run: impl FnMut(Variant, Beside) -> Result<Option<Outcome>>,
) -> Result<Finding> {
    let mut messages = Vec::new();
    let mut passes = |variant: Variant, messages: &mut Vec<String>| -> Result<bool> {
        for number in 0..TRIES {
            let beside = match number {
                0 => Beside::Others,
                _ => Beside::Nothing,
            };
            match run(variant, beside)? {
                None => return Ok(false),
                Some(Ok(())) => return Ok(true),
                Some(Err(message)) => {
                    let is_final = variant != Variant::Plain && waits(&message, blocks);
                    messages.push(format!("{}: {message}", variant.directory()));
                    if is_final {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(false)
    };
    let verdict = 'verdict: {
        if !passes(Variant::Plain, &mut messages)? {
            break 'verdict Verdict::Skipped;
        }
        messages.clear();
        if passes(Variant::Filtered, &mut messages)? {
            break 'verdict Verdict::Passed(Variant::Filtered);
        }
        if messages
            .last()
            .is_some_and(|message| waits(message, blocks))
        {
            for variant in [Variant::AfterData, Variant::Deadline] {
                if passes(variant, &mut messages)? {
                    break 'verdict Verdict::Passed(variant);
                }
            }
        }
        // Whether it still passes tells a busy machine from a fault.
        let again = passes(Variant::Plain, &mut messages)?;
        let word = if again { "passes" } else { "fails" };
        messages.push(format!("plain: {word} when run once more"));
        Verdict::Failed
    };
    Ok(Finding { verdict, messages })
}

/// Returns whether `message` is that of an `accept()` that had to wait. `blocks` says whether the
/// script has one that blocks.
fn waits(message: &str, blocks: bool) -> bool {
    let is = |part: &str| message.contains(part);
    is(NOTHING_TO_ACCEPT) || is(NOT_ACCEPTED) || blocks && is(LATE_CALL)
}

/// Returns whether a script has an `accept()` that blocks: packetdrill is told when it returns.
fn blocks(script: &str) -> bool {
    let calls = script.lines().filter(|line| line.contains("accept("));
    calls
        .filter_map(|line| line.split_whitespace().next())
        .any(|time| time.contains("..."))
}

/// What `cargo xtask packetdrill` asks for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The program.
    #[arg(long)]
    packetdrill: PathBuf,
    /// The kernel's directory with the scripts' helpers.
    #[arg(long)]
    helpers: PathBuf,
    /// The directory with a file `plan`, each line of which is the name of a script and a family,
    /// and a directory of scripts for each variant.
    #[arg(long)]
    scripts: PathBuf,
    /// The directory to write `results.jsonl` and the logs to.
    #[arg(long)]
    out: PathBuf,
    /// How late a segment or system call may be, in microseconds.
    #[arg(long)]
    tolerance_usecs: u32,
    /// By how many microseconds `accept()` is called later where the listener has a deadline.
    #[arg(long)]
    later_usecs: u32,
}

/// Runs the scripts of the plan, some of them beside each other. What it finds is the caller's to
/// judge.
pub(crate) fn run(options: &Options) -> Result<()> {
    // It fails where the driver is built in, and then it is not needed.
    let _ = Command::new("modprobe").arg("tun").status();
    ensure!(
        Path::new("/dev/net/tun").exists(),
        "this kernel has no tun device"
    );
    let place = PathBuf::from("/tmp/packetdrill");
    prepare(&options.helpers, &place)?;
    let logs = options.out.join("logs");
    fs::create_dir_all(&logs)?;
    let plan = fs::read_to_string(options.scripts.join("plan"))?;
    let plan = plan
        .lines()
        .map(|line| line.split_once(' ').context("a plan has two words a line"))
        .collect::<Result<Vec<_>>>()?;
    let runner = Runner {
        options,
        place: &place,
        logs: &logs,
        alone: RwLock::new(()),
    };
    let results = Mutex::new(File::create(options.out.join("results.jsonl"))?);
    let (next, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || -> Result<()> {
        while let Some(&(name, family)) = plan.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let mut runs = 0;
            let blocks = blocks(&fs::read_to_string(runner.script(name, Variant::Plain))?);
            let run = |variant, beside| runner.run(name, family, variant, beside, &mut runs);
            let Finding { verdict, messages } = judge(blocks, run)?;
            let result = json!({
                "name": name,
                "family": family,
                "verdict": verdict.to_string(),
                "messages": messages,
                "runs": runs,
            });
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(results, "{result}")?;
            let seconds = start.elapsed().as_secs_f64();
            let number = ended.fetch_add(1, Ordering::Relaxed) + 1;
            let total = plan.len();
            println!("{verdict:26} {name}.{family} ({number} of {total}, {seconds:.1} s)");
            if verdict == Verdict::Failed {
                for message in &messages {
                    println!("    {}", message.replace('\n', "\n      "));
                }
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..JOBS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| bail!("a thread that runs scripts has panicked"))
        })
    })
}

/// Runs scripts.
struct Runner<'a> {
    options: &'a Options,
    /// The directory to run them in.
    place: &'a Path,
    logs: &'a Path,
    /// Locked by each run: for writing by one that must have the machine to itself.
    alone: RwLock<()>,
}

impl Runner<'_> {
    /// Returns where a variant of a script is, if there is one.
    fn script(&self, name: &str, variant: Variant) -> PathBuf {
        let directory = self.options.scripts.join(variant.directory());
        directory.join(name).with_extension("pkt")
    }

    /// Runs a variant of a script, as one more of its `runs`. Returns nothing if there is none.
    fn run(
        &self,
        name: &str,
        family: &str,
        variant: Variant,
        beside: Beside,
        runs: &mut u32,
    ) -> Result<Option<Outcome>> {
        let script = self.script(name, variant);
        if !script.exists() {
            return Ok(None);
        }
        *runs += 1;
        let log = format!("{name}.{family}.{runs}-{}", variant.directory());
        let log = self.logs.join(log);
        // Whatever comes after an `accept()` that was put off is later, and so are its timestamps.
        let tolerance = match variant {
            Variant::Deadline => self.options.tolerance_usecs + self.options.later_usecs,
            _ => self.options.tolerance_usecs,
        };
        let options = (&*self.options.packetdrill, tolerance);
        let run = || packetdrill(options, self.place, &script, family, &log);
        let outcome = match beside {
            Beside::Others => {
                let _guard = self.alone.read().unwrap_or_else(PoisonError::into_inner);
                run()
            }
            Beside::Nothing => {
                let _guard = self.alone.write().unwrap_or_else(PoisonError::into_inner);
                run()
            }
        };
        outcome.map(Some)
    }
}

/// Copies what scripts run into `place`, and makes it fast.
fn prepare(helpers: &Path, place: &Path) -> Result<()> {
    fs::create_dir_all(place)?;
    for name in HELPERS {
        let (from, to) = (helpers.join(name), place.join(name));
        fs::copy(&from, &to).with_context(|| from.display().to_string())?;
    }
    let ifconfig = place.join("ifconfig");
    if !ifconfig.exists() {
        symlink(BUSYBOX, &ifconfig)?;
    }
    let defaults = place.join("defaults.sh");
    let text = fs::read_to_string(&defaults)?;
    let (first, rest) = text.split_once('\n').context("defaults.sh has no lines")?;
    ensure!(
        first.ends_with("bash") && rest.contains("sysctl -q "),
        "defaults.sh is not the script that this program knows"
    );
    Ok(fs::write(&defaults, format!("{first}\n{SYSCTL}{rest}"))?)
}

/// Runs a script in a network namespace of its own, and keeps its output in `log`.
fn packetdrill(
    (program, tolerance_usecs): (&Path, u32),
    place: &Path,
    script: &Path,
    family: &str,
    log: &Path,
) -> Result<Outcome> {
    let output = File::create(log)?;
    let path = std::env::var("PATH").context("there is no PATH")?;
    let mut child = Command::new("unshare")
        .arg("--net")
        .arg(program)
        .args(addresses(family)?)
        .arg(format!("--tolerance_usecs={tolerance_usecs}"))
        .arg(script)
        .current_dir(place)
        .env("PATH", format!("{}:{path}", place.display()))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .context("cannot run unshare")?;
    let status = wait(&mut child)?;
    let said = fs::read_to_string(log)?;
    let said = said.trim();
    Ok(match status {
        Some(status) if status.success() => Ok(()),
        Some(status) if said.is_empty() => Err(format!("{status}")),
        Some(_) => Err(short(said, script)),
        None => Err(format!("still running after {} s", LIMIT.as_secs())),
    })
}

/// Leaves out the path of the script, which packetdrill prints before each message.
fn short(said: &str, script: &Path) -> String {
    said.replace(&format!("{}:", script.display()), "line ")
}

/// Waits for a program, and kills it with its children at the limit.
fn wait(child: &mut Child) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > LIMIT {
            killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL)?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// Returns the arguments for a family, as the kernel's `ksft_runner.sh` has them. The cookies
/// belong to the key of TCP Fast Open in `defaults.sh`.
fn addresses(family: &str) -> Result<Vec<String>> {
    let (version, cookies, level, kind) = match family {
        "v4" => ("ipv4", V4_COOKIES, "SOL_IP", "IP_RECVERR"),
        "mapped" => ("ipv4-mapped-ipv6", V4_COOKIES, "SOL_IPV6", "IPV6_RECVERR"),
        "v6" => ("ipv6", V6_COOKIES, "SOL_IPV6", "IPV6_RECVERR"),
        _ => bail!("no family is called {family}"),
    };
    let places: &[&str] = match family {
        "v6" => &[
            "--mtu=1520",
            "--local_ip=fd3d:0a0b:17d6::1",
            "--gateway_ip=fd3d:0a0b:17d6:8888::1",
            "--remote_ip=fd3d:fa7b:d17d::1",
        ],
        _ => &[
            "--local_ip=192.168.0.1",
            "--gateway_ip=192.168.0.1",
            "--netmask_ip=255.255.0.0",
            "--remote_ip=192.0.2.1",
        ],
    };
    let mut arguments = vec![format!("--ip_version={version}")];
    arguments.extend(places.iter().map(|&place| place.to_owned()));
    for (name, value) in [
        ("TFO_COOKIE", cookies[0]),
        ("TFO_COOKIE_ZERO", cookies[1]),
        ("CMSG_LEVEL_IP", level),
        ("CMSG_TYPE_RECVERR", kind),
    ] {
        arguments.extend(["-D".to_owned(), format!("{name}={value}")]);
    }
    Ok(arguments)
}

/// The Fast Open cookie of an IPv4 client, and that for a key of zeros.
const V4_COOKIES: [&str; 2] = ["3021b9d889017eeb", "b7c12350a90dc8f5"];

/// The same for an IPv6 client.
const V6_COOKIES: [&str; 2] = ["c1d1e9742a47a9bc", "82af1a8f9a205c34"];

#[cfg(test)]
mod tests {
    use super::*;

    /// The message of an `accept()` that found nothing.
    const WAITS: &str = "line 9: runtime error in accept call: Expected non-negative result but \
                         got -1 with errno 11 (Resource temporarily unavailable)";

    /// Judges a script whose runs end one after the other as `outcomes` say: the variant, and what
    /// packetdrill says if it fails. Checks that these runs take place, and no others.
    fn judged(outcomes: &[(Variant, Option<&str>)]) -> Finding {
        judged_of(false, outcomes)
    }

    /// The same of a script with an `accept()` that `blocks`.
    fn judged_of(blocks: bool, outcomes: &[(Variant, Option<&str>)]) -> Finding {
        let mut left = outcomes.iter();
        let mut before = None;
        let finding = judge(blocks, |variant, beside| {
            let (wanted, said) = left.next().expect("one run too many");
            assert_eq!(variant, *wanted);
            // Whatever is run again at once is run alone.
            assert_eq!(beside == Beside::Nothing, before == Some(variant));
            before = Some(variant);
            Ok(match said {
                Some("missing") => None,
                Some(said) => Some(Err((*said).to_owned())),
                None => Some(Ok(())),
            })
        });
        assert_eq!(left.next(), None);
        finding.unwrap()
    }

    use Variant::{AfterData, Deadline, Filtered, Plain};

    #[test]
    fn a_script_that_fails_plain_is_skipped_after_three_runs() {
        let late = Some("late");
        let finding = judged(&[(Plain, late), (Plain, late), (Plain, late)]);
        assert_eq!(finding.verdict, Verdict::Skipped);
        assert_eq!(finding.messages, ["plain: late"; 3]);
    }

    #[test]
    fn a_script_passes_when_a_repetition_does() {
        let late = Some("late");
        let finding = judged(&[
            (Plain, late),
            (Plain, None),
            (Filtered, late),
            (Filtered, None),
        ]);
        assert_eq!(finding.verdict, Verdict::Passed(Filtered));
    }

    #[test]
    fn only_an_early_accept_leads_to_the_other_forms() {
        let finding = judged(&[
            (Plain, None),
            (Filtered, Some(WAITS)),
            (AfterData, Some("missing")),
            (Deadline, None),
        ]);
        assert_eq!(finding.verdict, Verdict::Passed(Deadline));
        let finding = judged(&[(Plain, None), (Filtered, Some(WAITS)), (AfterData, None)]);
        assert_eq!(finding.verdict, Verdict::Passed(AfterData));
        let wrong = Some("live packet field window");
        let finding = judged(&[
            (Plain, None),
            (Filtered, wrong),
            (Filtered, wrong),
            (Filtered, wrong),
            (Plain, None),
        ]);
        assert_eq!(finding.verdict, Verdict::Failed);
        let last = finding.messages.last().unwrap();
        assert_eq!(last, "plain: passes when run once more");
    }

    #[test]
    fn a_blocking_accept_that_does_not_return_leads_to_the_other_forms() {
        let blocked = Some("line 9: unable to find fd with script fd 4");
        let finding = judged(&[
            (Plain, None),
            (Filtered, blocked),
            (AfterData, Some("missing")),
            (Deadline, None),
        ]);
        assert_eq!(finding.verdict, Verdict::Passed(Deadline));
    }

    #[test]
    fn only_a_blocking_accept_makes_a_late_call_one_that_waits() {
        let late = Some("line 18: timing error: expected system call start at 0.4 sec");
        let finding = judged_of(
            true,
            &[
                (Plain, None),
                (Filtered, late),
                (AfterData, Some("missing")),
                (Deadline, None),
            ],
        );
        assert_eq!(finding.verdict, Verdict::Passed(Deadline));
        let finding = judged(&[(Plain, None), (Filtered, late), (Filtered, None)]);
        assert_eq!(finding.verdict, Verdict::Passed(Filtered));
    }

    #[test]
    fn an_accept_with_a_time_of_its_return_blocks() {
        assert!(blocks(
            "0 listen(3, 1) = 0\n+0...0.200 accept(3, ..., ...) = 4\n"
        ));
        assert!(!blocks(
            "0 socket(..., SOCK_STREAM, 0) = 3\n+0 accept(3, ..., ...) = 4\n"
        ));
    }

    #[test]
    fn a_script_fails_when_no_form_passes() {
        let wrong = Some("live packet field window");
        let finding = judged(&[
            (Plain, None),
            (Filtered, Some(WAITS)),
            (AfterData, Some(WAITS)),
            (Deadline, wrong),
            (Deadline, wrong),
            (Deadline, wrong),
            (Plain, None),
        ]);
        assert_eq!(finding.verdict, Verdict::Failed);
        assert_eq!(finding.messages.len(), 6, "{finding:?}");
    }

    #[test]
    fn messages_have_no_path() {
        let said = short(
            "/a/b.pkt:12: error\n/a/b.pkt:13: more",
            Path::new("/a/b.pkt"),
        );
        assert_eq!(said, "line 12: error\nline 13: more");
    }
}
