// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attributes the instructions of a connection to functions, and compares
//! listeners.
//!
//! ```text
//! section-N + kallsyms ─► counts ─┐
//! profile.json ───────────────────┴─► results
//! ```

mod counts;
mod results;
mod symbols;

use std::path::Path;

use accf_bench::{Profile, PROFILE_FILE, SCHEMA, SYMBOLS_FILE};
use anyhow::{ensure, Context, Result};
use fs_err as fs;

use self::counts::Counts;
use self::results::{Part, Report};
use self::symbols::Symbols;
use crate::report::{check_schema, read, write_both};
use crate::table::Screen;

/// The module's name.
const MODULE: &str = "accf";

/// Reads the recording of the guest and the counts of the plugin, writes the results into `out`,
/// and returns the text for the terminal.
pub(crate) fn evaluate(
    recorded: &Path,
    counted: &Path,
    out: &Path,
    screen: Screen,
) -> Result<String> {
    let profile: Profile = read(recorded, PROFILE_FILE)?;
    check_schema(PROFILE_FILE, profile.schema, SCHEMA)?;
    let symbols = Symbols::parse(&fs::read_to_string(recorded.join(SYMBOLS_FILE))?)?;
    ensure!(
        symbols.has_module(MODULE),
        "the kernel's symbols have none of {MODULE}.ko: it was not loaded"
    );
    let mut parts = Vec::new();
    for (number, section) in profile.sections.iter().enumerate() {
        let path = counted.join(format!("section-{number}"));
        let text =
            fs::read_to_string(&path).context("the plugin has not seen this section's marks")?;
        let counts = Counts::parse(&text, &symbols).with_context(|| path.display().to_string())?;
        // The plugin counts between the marks, the guest's clock from just before to just after
        // them.
        let (counted, elapsed) = (counts.total(), section.instructions);
        ensure!(
            counted.abs_diff(elapsed) <= elapsed / 200,
            "the plugin has counted {counted} instructions of section {number}, but the guest's \
             clock {elapsed}"
        );
        parts.push(Part::new(section, &counts));
    }
    let report = Report::new(profile.kernel, parts);
    write_both(out, &report, &report.all())?;
    Ok(report.shown().terminal(screen))
}

#[cfg(test)]
mod tests {
    use accf_bench::{Listener, Section};

    use super::*;
    use crate::scratch::Scratch;

    /// The symbols of a kernel with the module.
    const KALLSYMS: &str = "\
ffffffff81000000 T memset
ffffffff81000040 t tcp_check_req
ffffffffc0000000 t _RNvNtNtCsd5nqjlr6OOH_9accf_main3net5hooks13syn_recv_sock\t[accf]
";

    /// The plugin's counts of ten connections to each listener.
    const COUNTED: [&str; 3] = [
        "401000 50\nffffffff81000000 300\nffffffff81000040 20\nffffffff81000044 180\n",
        "401000 30\nffffffff81000000 290\nffffffff81000040 20\nffffffff81000044 180\n",
        "401000 30\nffffffff81000000 300\nffffffff81000040 20\nffffffff81000044 180\n\
         ffffffffc0000000 20\nffffffffc0000004 400\n",
    ];

    /// Writes the files of a run in which the guest's clock counted `instructions`.
    fn leave(recorded: &Scratch, instructions: [u64; 3]) {
        let sections = Listener::ALL.into_iter().zip(instructions);
        let profile = Profile {
            schema: SCHEMA,
            kernel: "7.3.4".to_owned(),
            sections: sections
                .map(|(listener, instructions)| Section {
                    listener,
                    case: "epoll/pause".to_owned(),
                    connections: 10,
                    instructions,
                })
                .collect(),
        };
        let write = |name: &str, text: &str| fs::write(recorded.0.join(name), text).unwrap();
        write(PROFILE_FILE, &serde_json::to_string(&profile).unwrap());
        write(SYMBOLS_FILE, KALLSYMS);
        for (number, counted) in COUNTED.iter().enumerate() {
            write(&format!("section-{number}"), counted);
        }
    }

    #[test]
    fn a_profile_is_reported() {
        let (recorded, out) = (Scratch::new("profile"), Scratch::new("profile-out"));
        leave(&recorded, [550, 521, 951]);
        let shown = evaluate(&recorded.0, &recorded.0, &out.0, Screen::PLAIN).unwrap();
        let heading = "dataready against defer_accept: 43 instructions more";
        assert!(shown.contains(heading), "{shown}");
        let report = out.text("report.md");
        for text in [
            "| plain | 55 | 5 | 50 | 0 |\n",
            "| dataready | 95 | 3 | 92 | 42 |\n",
            heading,
            "| 42 | 42 | 0 | 2.00 | 0.00 | `accf_main::net::hooks::syn_recv_sock [accf]` |\n\
             | 1 | 30 | 29 | 30.00 | 29.00 | `memset` |\n\n",
            "dataready against plain: 40 instructions more",
            "| 20 | 2.00 | `tcp_check_req` |\n",
        ] {
            assert!(report.contains(text), "{text}\n{report}");
        }
        let json = out.json("report.json");
        let filter = &json["sections"][2];
        assert_eq!(filter["listener"], "dataready");
        assert_eq!(filter["module"], 42.0);
        assert_eq!(filter["programs"], 3.0);
        let first = &filter["functions"][0];
        assert_eq!(first["function"], "accf_main::net::hooks::syn_recv_sock");
        assert_eq!(first["module"], "accf");
        assert_eq!(first["instructions"], 42.0);
        assert_eq!(first["calls"], 2.0);
    }

    #[test]
    fn inconsistent_profiles_are_refused() {
        let recorded = Scratch::new("profile-wrong");
        let says = || {
            let result = evaluate(&recorded.0, &recorded.0, &recorded.0, Screen::PLAIN);
            format!("{:#}", result.unwrap_err())
        };
        assert!(says().contains("did not get to the end"));
        leave(&recorded, [550, 530, 951]);
        assert!(says().contains("has counted 520 instructions of section 1"));
        leave(&recorded, [550, 520, 951]);
        fs::remove_file(recorded.0.join("section-2")).unwrap();
        assert!(says().contains("has not seen this section's marks"));
        fs::write(recorded.0.join(SYMBOLS_FILE), "ffffffff81000000 T memset\n").unwrap();
        assert!(says().contains("it was not loaded"));
    }
}
