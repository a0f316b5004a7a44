// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that runs out just when the module asks for some (`CONFIG_FAILSLAB`).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::module;

const FAILSLAB: &str = "/sys/kernel/debug/failslab";

/// While it lives, small allocations of the module that must not wait fail; all others do not.
#[derive(Debug)]
pub struct NoMemory {
    _private: (),
}

impl NoMemory {
    /// Has the module's next `times` allocations fail; nothing, if this kernel cannot.
    pub fn for_the_next(times: u32) -> Result<Option<Self>> {
        if !Path::new(FAILSLAB).join("require-start").exists() {
            return Ok(None);
        }
        let (start, end) = module::text()?;
        let armed = Self { _private: () };
        // The probability last: it is what begins it.
        let settings = [
            ("verbose", 0),
            ("task-filter", 0),
            ("ignore-gfp-wait", 1),
            ("interval", 1),
            ("space", 0),
            ("stacktrace-depth", 32),
            ("require-start", start),
            ("require-end", end),
            ("times", times.into()),
            ("probability", 100),
        ];
        for (name, value) in settings {
            set(name, value)?;
        }
        Ok(Some(armed))
    }

    /// How many allocations are still to fail.
    pub fn left(&self) -> Result<u32> {
        let path = Path::new(FAILSLAB).join("times");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.trim()
            .parse()
            .with_context(|| format!("{}: `{}`", path.display(), text.trim()))
    }
}

impl Drop for NoMemory {
    fn drop(&mut self) {
        // Nobody is left to hear of an error here.
        let _ = set("probability", 0);
        let _ = set("require-start", 0);
        let _ = set("require-end", u64::MAX);
    }
}

fn set(name: &str, value: u64) -> Result<()> {
    let path = Path::new(FAILSLAB).join(name);
    let text = match name {
        "task-filter" | "ignore-gfp-wait" => if value == 0 { "N" } else { "Y" }.to_owned(),
        _ => value.to_string(),
    };
    fs::write(&path, text).with_context(|| format!("{} = {value}", path.display()))
}
