// SPDX-License-Identifier: MIT OR Apache-2.0

//! The system calls that no crate offers in a safe form: the only `unsafe` of user space.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use io_uring::{cqueue, opcode, types, IoUring};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{LinkAddr, SockaddrLike};

/// Reads a socket option into `value` and says how many bytes the kernel wrote.
pub(crate) fn get_option(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY:
    // - `value` is a live, exclusive borrow of `len` writable bytes, and the kernel writes at most
    //   that many;
    // - `len` is a local the kernel may overwrite;
    // - The descriptor stays open while it is borrowed.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &mut len,
        )
    };
    Errno::result(rc)?;
    Ok(len as usize)
}

/// Sets a socket option to `value`.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &[u8],
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY:
    // - `value` is a live borrow of `len` readable bytes, which the kernel only reads;
    // - The descriptor stays open while it is borrowed.
    let rc =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    Errno::result(rc)?;
    Ok(())
}

/// Where no process has anything mapped: the first page.
const NOWHERE: *mut libc::c_void = std::ptr::without_provenance_mut(8);

/// Asks for a socket option of `length` bytes to be written where nothing can be.
pub(crate) fn get_option_nowhere(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    length: u32,
) -> io::Result<()> {
    let mut length = length;
    // SAFETY: Nothing is mapped there, so there is nothing to overwrite; `length` is a local the
    // kernel may overwrite.
    let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, NOWHERE, &mut length) };
    Errno::result(rc)?;
    Ok(())
}

/// Sets a socket option to `length` bytes from where nothing can be read.
pub(crate) fn set_option_nowhere(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    length: u32,
) -> io::Result<()> {
    // SAFETY: The kernel only reads, or fails to.
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, NOWHERE, length) };
    Errno::result(rc)?;
    Ok(())
}

/// Memory for the arguments of system calls that are not to be trusted with it: a page that can
/// only be read, pages that can be written, and behind them far more room than any option has where
/// nothing can be done.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: *mut u8,
}

// SAFETY: The memory belongs to this value alone, and is only written through an exclusive borrow.
unsafe impl Send for Mapping {}

impl Mapping {
    /// The size of a page.
    pub(crate) const PAGE: usize = 4096;
    /// How many bytes can be written.
    pub(crate) const ROOM: usize = 4 * Self::PAGE;
    const GUARD: usize = 1 << 20;
    const SIZE: usize = Self::PAGE + Self::ROOM + Self::GUARD;

    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: A new mapping at an address that the kernel chooses, in the way of nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::SIZE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = Self { base: base.cast() };
        // SAFETY: Both parts lie inside the mapping, which nothing has a reference to yet;
        // anonymous memory is zero.
        let results = unsafe {
            [
                libc::mprotect(base, Self::PAGE, libc::PROT_READ),
                libc::mprotect(
                    base.cast::<u8>().add(Self::PAGE).cast(),
                    Self::ROOM,
                    libc::PROT_READ | libc::PROT_WRITE,
                ),
            ]
        };
        for result in results {
            Errno::result(result)?;
        }
        Ok(mapping)
    }

    /// Returns what can be written.
    pub(crate) fn room(&self) -> &[u8] {
        // SAFETY: Mapped, readable and initialised for as long as `self` lives; written through
        // `&mut self` only.
        unsafe { std::slice::from_raw_parts(self.base.add(Self::PAGE), Self::ROOM) }
    }

    /// Returns what can be written, to be written.
    pub(crate) fn room_mut(&mut self) -> &mut [u8] {
        // SAFETY: Mapped, writable and initialised for as long as `self` lives; the borrow is
        // exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(Self::PAGE), Self::ROOM) }
    }

    /// Returns the address of a place. None but those of this mapping can be written.
    fn address(&self, place: Place) -> *mut libc::c_void {
        let end = Self::PAGE + Self::ROOM;
        let offset = match place {
            Place::Null => return std::ptr::null_mut(),
            Place::Nowhere => return NOWHERE,
            Place::ReadOnly => 0,
            Place::BeforeEnd(bytes) => end - bytes.min(Self::ROOM),
            Place::Guard => end + Self::PAGE,
        };
        self.base.wrapping_add(offset).cast()
    }

    /// `setsockopt()` with a length that need not be true.
    pub(crate) fn set_option(
        &self,
        socket: BorrowedFd<'_>,
        level: i32,
        name: i32,
        place: Place,
        length: i32,
    ) -> io::Result<()> {
        let value = self.address(place);
        // SAFETY: The kernel only reads: from this mapping, or from where nothing is mapped, or it
        // fails.
        let rc = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                name,
                value,
                length.cast_unsigned(),
            )
        };
        Errno::result(rc)?;
        Ok(())
    }

    /// `getsockopt()` with a length that need not be true; also returns the length that the kernel
    /// left.
    pub(crate) fn get_option(
        &mut self,
        socket: BorrowedFd<'_>,
        level: i32,
        name: i32,
        place: Place,
        length: i32,
    ) -> (io::Result<()>, i32) {
        let value = self.address(place);
        let mut length = length.cast_unsigned();
        // SAFETY: What the kernel writes, were it more than it may, goes upwards from a place
        // inside this mapping, which is exclusively borrowed and ends in a guard; or from where
        // nothing can be written. `length` is a local.
        let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value, &mut length) };
        let result = Errno::result(rc).map(drop).map_err(io::Error::from);
        (result, length.cast_signed())
    }

    /// `getsockopt()` whose length is somewhere, too.
    pub(crate) fn get_option_by(
        &mut self,
        socket: BorrowedFd<'_>,
        level: i32,
        name: i32,
        place: Place,
        length: Place,
    ) -> io::Result<()> {
        let (value, length) = (self.address(place), self.address(length));
        // SAFETY: What the kernel writes to either place goes upwards inside this mapping, which is
        // exclusively borrowed and ends in a guard; or from where nothing can be written.
        let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value, length.cast()) };
        Errno::result(rc)?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: Our own mapping, to which no reference is left.
        unsafe { libc::munmap(self.base.cast(), Self::SIZE) };
    }
}

/// Where an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At address 0.
    Null,
    /// Where nothing is mapped.
    Nowhere,
    /// At the begin of a page of zeros that can only be read.
    ReadOnly,
    /// This many bytes before the end of what can be read and written.
    BeforeEnd(usize),
    /// In memory that is mapped and can neither be read nor written.
    Guard,
}

/// Takes the connection of a TCP socket apart: `connect()` to `AF_UNSPEC`.
pub(crate) fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let size = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: `unspecified` is a whole `sockaddr` that outlives the call, and the kernel only reads
    // it.
    let rc = unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, size) };
    Errno::result(rc)?;
    Ok(())
}

/// Returns the address that binds a packet socket to every protocol of one interface.
pub(crate) fn packet_address(interface: u32) -> io::Result<LinkAddr> {
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: i32::try_from(interface).map_err(|_| Errno::EINVAL)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `raw` is a whole, initialised `sockaddr_ll` that outlives the call, and no length is
    // claimed.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), None) };
    address.ok_or_else(|| Errno::EINVAL.into())
}

/// Turns an open `/dev/net/tun` into the interface `name`, of the kind and with the headers that
/// `flags` say (`IFF_TUN` and others).
pub(crate) fn tun_attach(tun: BorrowedFd<'_>, name: &str, flags: i32) -> io::Result<()> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(Errno::ENAMETOOLONG.into());
    }
    let mut ifr_name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let request = libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            // The flags are the lower 16 bits, of which one is the sign.
            ifru_flags: flags as libc::c_short,
        },
    };
    // SAFETY:
    // - `request` is a whole `ifreq` whose name ends with a zero byte, alive during the call;
    // - TUNSETIFF reads it and writes back the name only, inside the same structure;
    // - The descriptor stays open while it is borrowed.
    let rc = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    Errno::result(rc)?;
    Ok(())
}

/// Says which offloads the reader of a TUN or TAP interface takes (`TUN_F_CSUM` and others).
pub(crate) fn tun_offloads(tun: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    let offloads = libc::c_ulong::from(offloads);
    // SAFETY: TUNSETOFFLOAD takes a number; the descriptor stays open while it is borrowed.
    let rc = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) };
    Errno::result(rc)?;
    Ok(())
}

/// Packs numbers as the kernel reads them in a `union bpf_attr`: pairs of `u32`.
fn pair(low: u32, high: u32) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes
        .iter_mut()
        .zip(low.to_ne_bytes().into_iter().chain(high.to_ne_bytes()))
    {
        *to = from;
    }
    u64::from_ne_bytes(bytes)
}

/// `bpf()`: `attributes` is a `union bpf_attr`, as far as the command needs it.
///
/// # Safety
///
/// What the command takes for an address in `attributes` must be valid for what it does there.
unsafe fn bpf(command: i32, attributes: &[u64]) -> io::Result<i32> {
    // SAFETY: The kernel reads the attributes, which outlive the call and have the size that it is
    // told. The addresses in them are valid by the contract of this function.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of_val(attributes),
        )
    };
    let rc = Errno::result(rc)?;
    i32::try_from(rc).map_err(|_| Errno::EOVERFLOW.into())
}

/// Loads a BPF program of a type (`BPF_PROG_LOAD`), under a licence that is the GPL's. Some types
/// are told apart further by where the program is to be attached; for the others that is 0.
pub(crate) fn bpf_load(kind: u32, attach_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: i32 = 5;
    const LICENCE: &CStr = c"GPL";
    let count = u32::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?;
    let attributes = [
        pair(kind, count),
        instructions.as_ptr().expose_provenance() as u64,
        LICENCE.as_ptr().expose_provenance() as u64,
        // No log; for any kernel; no flags; no name; for no interface's hardware.
        0,
        0,
        0,
        0,
        0,
        pair(0, attach_type),
    ];
    // SAFETY: The kernel reads `count` instructions of eight bytes, and a string that ends with a
    // zero byte; both outlive the call. It is not told of a buffer for a log.
    let fd = unsafe { bpf(PROG_LOAD, &attributes) }?;
    // SAFETY: A new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a BPF map of a type (`BPF_MAP_CREATE`), with keys of four bytes.
pub(crate) fn bpf_map(kind: u32, value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    const MAP_CREATE: i32 = 0;
    const KEY_SIZE: u32 = 4;
    // SAFETY: There is no address in the attributes.
    let fd = unsafe {
        bpf(
            MAP_CREATE,
            &[pair(kind, KEY_SIZE), pair(value_size, entries)],
        )
    }?;
    // SAFETY: A new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How many numbers of eight bytes a value of a BPF map can have here: more than any that a test
/// makes.
const BPF_VALUES: usize = 512;

/// Sets a number in a BPF map (`BPF_MAP_UPDATE_ELEM`).
pub(crate) fn bpf_write_number(map: &OwnedFd, key: u32, value: u32) -> io::Result<()> {
    const MAP_UPDATE_ELEM: i32 = 2;
    let mut values = [0_u64; BPF_VALUES];
    let [first, ..] = &mut values;
    *first = pair(value, 0);
    let attributes = [
        pair(map.as_raw_fd().cast_unsigned(), 0),
        (&raw const key).expose_provenance() as u64,
        values.as_ptr().expose_provenance() as u64,
        0,
    ];
    // SAFETY: The kernel reads a key of four bytes and a value that is shorter than `values`; both
    // outlive the call.
    unsafe { bpf(MAP_UPDATE_ELEM, &attributes) }?;
    Ok(())
}

/// Reads the first number of a BPF map (`BPF_MAP_LOOKUP_ELEM`).
pub(crate) fn bpf_read_number(map: &OwnedFd) -> io::Result<u64> {
    const MAP_LOOKUP_ELEM: i32 = 1;
    let (key, mut values) = (0_u32, [0_u64; BPF_VALUES]);
    let attributes = [
        pair(map.as_raw_fd().cast_unsigned(), 0),
        (&raw const key).expose_provenance() as u64,
        values.as_mut_ptr().expose_provenance() as u64,
        0,
    ];
    // SAFETY: The kernel reads a key of four bytes, and writes a value that is shorter than
    // `values`; both outlive the call.
    unsafe { bpf(MAP_LOOKUP_ELEM, &attributes) }?;
    // SAFETY: `values` is initialised memory of this function's own. The kernel may have written
    // it by its address.
    Ok(unsafe { (&raw const values).cast::<u64>().read_volatile() })
}

/// Attaches a BPF program to a control group (`BPF_PROG_ATTACH`).
pub(crate) fn bpf_attach_to_cgroup(
    program: &OwnedFd,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<()> {
    const PROG_ATTACH: i32 = 8;
    let fds = pair(
        cgroup.as_raw_fd().cast_unsigned(),
        program.as_raw_fd().cast_unsigned(),
    );
    // SAFETY: There is no address in the attributes.
    unsafe { bpf(PROG_ATTACH, &[fds, pair(attach_type, 0)]) }?;
    Ok(())
}

/// Attaches an XDP program to an interface of the calling thread's namespace (`BPF_LINK_CREATE`),
/// until the link is closed. `flags` say how (`XDP_FLAGS_DRV_MODE` and others).
pub(crate) fn bpf_attach_xdp(program: &OwnedFd, interface: u32, flags: u32) -> io::Result<OwnedFd> {
    const LINK_CREATE: i32 = 28;
    const XDP: u32 = 37;
    let target = pair(program.as_raw_fd().cast_unsigned(), interface);
    // SAFETY: There is no address in the attributes.
    let fd = unsafe { bpf(LINK_CREATE, &[target, pair(XDP, flags)]) }?;
    // SAFETY: A new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has a classic BPF program choose the listener of a `SO_REUSEPORT` group.
pub(crate) fn choose_by_filter(
    member: BorrowedFd<'_>,
    instructions: &[libc::sock_filter],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY:
    // - The kernel reads a whole `sock_fprog`, and `len` instructions, which outlive the call; it
    //   changes neither;
    // - The descriptor stays open while it is borrowed.
    let rc = unsafe {
        libc::setsockopt(
            member.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    Errno::result(rc)?;
    Ok(())
}

/// Returns the processor's time-stamp counter.
#[cfg(target_arch = "x86_64")]
pub(crate) fn time_stamp_counter() -> u64 {
    // SAFETY: Every x86-64 processor has the instruction, and Linux leaves it to programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Executes an instruction that does nothing; `MARK` stands where others have their operand's
/// address.
#[cfg(target_arch = "x86_64")]
pub(crate) fn mark<const MARK: i32>() {
    // SAFETY: A NOP with an operand only takes time. The operand's address is not computed, and
    // nothing is there to be read: no memory, no stack, no register and no flag changes.
    unsafe {
        core::arch::asm!(
            "nop dword ptr [rax + {mark}]",
            mark = const MARK,
            options(nostack, preserves_flags),
        );
    }
}

/// Gives the calling thread the policy `SCHED_IDLE`.
pub(crate) fn run_only_when_idle() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameters` is a whole `sched_param` that outlives the call; 0 is the calling
    // thread.
    let rc = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    Errno::result(rc)?;
    Ok(())
}

/// What became of an `IORING_OP_SEND_ZC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroCopySent {
    /// How many bytes were sent.
    pub bytes: usize,
    /// Whether the kernel has told that it needs the buffer no longer.
    pub notified: bool,
}

/// Sends `bytes` by `IORING_OP_SEND_ZC`, and waits for the kernel to release them.
///
/// `bytes` are never changed or freed, so that it does no harm if they are in use for longer.
pub(crate) fn send_zero_copy(
    socket: BorrowedFd<'_>,
    bytes: &'static [u8],
) -> io::Result<ZeroCopySent> {
    let len = u32::try_from(bytes.len()).map_err(|_| Errno::EMSGSIZE)?;
    let mut ring = IoUring::new(4)?;
    let target = types::Fd(socket.as_raw_fd());
    let entry = opcode::SendZc::new(target, bytes.as_ptr(), len).build();
    // SAFETY: `bytes` live for ever and are only read. The descriptor stays open while it is
    // borrowed: the operation holds its own reference to the file once it was submitted.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    let mut sent = None;
    loop {
        ring.submit_and_wait(1)?;
        while let Some(completion) = ring.completion().next() {
            let flags = completion.flags();
            if cqueue::notif(flags) {
                let bytes = sent.ok_or(Errno::EPROTO)?;
                return Ok(ZeroCopySent {
                    bytes,
                    notified: true,
                });
            }
            let Ok(bytes) = usize::try_from(completion.result()) else {
                // Not even a notification follows.
                return Err(io::Error::from_raw_os_error(-completion.result()));
            };
            sent = Some(bytes);
            if !cqueue::more(flags) {
                return Ok(ZeroCopySent {
                    bytes,
                    notified: false,
                });
            }
        }
    }
}
