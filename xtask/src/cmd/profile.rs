// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask profile`: counts the instructions of a connection by function.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use xshell::Shell;

use crate::kernel::Kind;
use crate::lab::Lab;
use crate::table::Screen;
use crate::{bench, profile, program, project, report, ui};

/// The guest's memory. The kernel's limit for closed connections in TIME-WAIT depends on it.
const MEMORY: &str = "3G";

/// The guest's time limit, for an emulated guest on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// Count the instructions of a connection by function, at each kind of listener, and show the
/// differences.
///
/// Boots the stock kernel in QEMU with a plugin that counts instructions by their addresses.
/// report.md and report.json go to target/accf/profile/. The counts are exact; two runs differ by
/// the work of timers.
#[derive(Debug, clap::Args)]
pub(crate) struct Profile {
    /// The number of connections to each listener; the results are means.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
}

impl Profile {
    /// Runs the command.
    pub(crate) fn run(&self, sh: &Shell) -> Result<()> {
        let lab = Lab::new(Kind::Stock)?;
        let module = lab.module().context("no module was built")?;
        let plugin = program::build_plugin(sh, "accf-profile")?;
        let program = program::build(sh, "accf-bench")?;

        let out = project::target().join("profile");
        let (recorded, counted) = (out.join("guest"), out.join("counts"));
        project::empty(&out)?;
        project::empty(&counted)?;
        ui::step("the profile in a guest", |_| {
            let mut guest = bench::machine(&lab, module);
            guest.memory = MEMORY.to_owned();
            guest.timeout = Some(TIMEOUT);
            guest.qemu_arguments.push("-plugin".into());
            guest.qemu_arguments.push(plugin_option(&plugin, &counted)?);
            guest.out = recorded.clone();
            let connections = self.connections.to_string();
            let command = [
                program.as_os_str(),
                "--profile".as_ref(),
                connections.as_ref(),
            ];
            lab.run_to_success(&guest, &command, 0)
        })?;
        let shown = profile::evaluate(&recorded, &counted, &out, Screen::stdout())?;
        report::show(&shown, "Report", &out);
        Ok(())
    }
}

/// Returns QEMU's option for the plugin, with the directory of the counts.
fn plugin_option(plugin: &Path, counted: &Path) -> Result<String> {
    let quoted = |path: &Path| -> Result<String> {
        let path = path.to_str().context("the checkout's path is not UTF-8")?;
        // QEMU takes a comma as the end of an argument, and two commas as one.
        Ok(path.replace(',', ",,"))
    };
    Ok(format!("{},out={}", quoted(plugin)?, quoted(counted)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_doubled_for_qemu() {
        let option = plugin_option(Path::new("/a,b/lib.so"), Path::new("/c d/counts"));
        assert_eq!(option.unwrap(), "/a,,b/lib.so,out=/c d/counts");
    }
}
