// SPDX-License-Identifier: MIT OR Apache-2.0
//! A plugin of QEMU that counts how often the guest's one processor executes each instruction.
//!
//! `-plugin PATH,out=DIRECTORY`. A program in the guest selects with marks (`marks.rs`) what is
//! counted. When a section ends, its counts are written to `DIRECTORY/section-N`, with `N` from 0:
//! each line has an instruction's virtual address, in hexadecimal, and how often it was executed.
//!
//! QEMU translates the guest's code in blocks, which are executed from their first instruction to
//! their last (a block that an exception leaves early is counted to its end). So it is enough to
//! count blocks.

#![forbid(unsafe_code)]

#[path = "../../kit/src/marks.rs"]
mod marks;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qemu_plugin::{
    register, Args, Error, HasCallbacks, Info, Instruction, PluginId, Register, Result,
    TranslationBlock,
};

/// The name of its only argument.
const OUT: &str = "out";

/// A translated block of the guest's code.
#[derive(Debug)]
struct Block {
    /// The virtual address of each of its instructions.
    addresses: Vec<u64>,
    /// How often it was executed in this section. Only the thread of the one processor writes it.
    executed: AtomicU64,
}

/// The counts of the present section.
#[derive(Debug, Default)]
struct Counts {
    /// Whether instructions are counted now.
    counting: AtomicBool,
    /// The number of sections that have ended.
    sections: AtomicU64,
    /// All blocks so far; code that QEMU has translated again is in several of them.
    blocks: Mutex<Vec<Arc<Block>>>,
    /// The directory for the sections.
    out: Mutex<PathBuf>,
}

impl Counts {
    /// Begins a section, with nothing counted yet.
    fn begin(&self) {
        for block in lock(&self.blocks).iter() {
            block.executed.store(0, Relaxed);
        }
    }

    /// Ends a section. If its file cannot be written, the host misses it, and reports that.
    fn end(&self) {
        let number = self.sections.fetch_add(1, Relaxed);
        let path = lock(&self.out).join(format!("section-{number}"));
        if let Err(error) = File::create(&path).and_then(|file| self.write(file)) {
            eprintln!("cannot write {}: {error}", path.display());
        }
    }

    /// Writes the counts.
    fn write(&self, file: File) -> io::Result<()> {
        let mut instructions: BTreeMap<u64, u64> = BTreeMap::new();
        for block in lock(&self.blocks).iter() {
            let executed = block.executed.load(Relaxed);
            if executed > 0 {
                for address in &block.addresses {
                    *instructions.entry(*address).or_default() += executed;
                }
            }
        }
        let mut file = BufWriter::new(file);
        for (address, executed) in instructions {
            writeln!(file, "{address:x} {executed}")?;
        }
        file.flush()
    }

    /// Returns the action of an instruction with this code, if it is a mark.
    fn action(code: &[u8]) -> Option<fn(&Self)> {
        // `nop dword ptr [rax + disp32]`
        let [0x0f, 0x1f, 0x80, operand @ ..] = code else {
            return None;
        };
        match i32::from_le_bytes(operand.try_into().ok()?) {
            marks::BEGIN => Some(Self::begin),
            marks::END => Some(Self::end),
            marks::RESUME => Some(|counts| counts.counting.store(true, Relaxed)),
            marks::PAUSE => Some(|counts| counts.counting.store(false, Relaxed)),
            _ => None,
        }
    }
}

/// Locks data that a panic cannot leave half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The plugin.
#[derive(Debug, Default)]
struct Profile {
    counts: Arc<Counts>,
}

impl Profile {
    /// Registers the action of an instruction, if it is a mark.
    fn register_mark(&self, instruction: &Instruction<'_>) {
        if let Some(action) = Counts::action(&instruction.data()) {
            let counts = Arc::clone(&self.counts);
            instruction.register_execute_callback(move |_| action(&counts));
        }
    }
}

impl Register for Profile {
    fn register(&mut self, _id: PluginId, args: &Args, info: &Info) -> Result<()> {
        let mut arguments = args.raw.iter().filter_map(|text| text.split_once('='));
        let Some((_, directory)) = arguments.find(|(name, _)| *name == OUT) else {
            return Err(Error::MissingArgValue {
                argument: OUT.to_owned(),
            });
        };
        *lock(&self.counts.out) = PathBuf::from(directory);
        match &info.system {
            Some(system) if system.smp_vcpus == 1 => Ok(()),
            _ => Err(Error::from(io::Error::other(
                "a machine with one processor is required",
            ))),
        }
    }
}

impl HasCallbacks for Profile {
    fn on_translation_block_translate(
        &mut self,
        _id: PluginId,
        tb: TranslationBlock<'_>,
    ) -> Result<()> {
        let mut addresses = Vec::with_capacity(tb.size());
        for instruction in tb.instructions() {
            addresses.push(instruction.vaddr());
            self.register_mark(&instruction);
        }
        let block = Arc::new(Block {
            addresses,
            executed: AtomicU64::new(0),
        });
        lock(&self.counts.blocks).push(Arc::clone(&block));
        let counts = Arc::clone(&self.counts);
        tb.register_execute_callback(move |_| {
            if counts.counting.load(Relaxed) {
                // Cheaper than an atomic addition.
                let executed = block.executed.load(Relaxed);
                block.executed.store(executed + 1, Relaxed);
            }
        });
        Ok(())
    }
}

register!(Profile::default());
