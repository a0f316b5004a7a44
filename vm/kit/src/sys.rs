// SPDX-License-Identifier: MIT OR Apache-2.0

//! The system calls that no crate offers in a safe form: the only `unsafe` of user space.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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
    // - `value` is a live, exclusive borrow of `len` writable bytes, and the kernel writes at most that many;
    // - `len` is a local the kernel may overwrite;
    // - the descriptor stays open while it is borrowed.
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
    // - the descriptor stays open while it is borrowed.
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
    // SAFETY: nothing is mapped there, so there is nothing to overwrite; `length` is a local the kernel may overwrite.
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
    // SAFETY: the kernel only reads, or fails to.
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, NOWHERE, length) };
    Errno::result(rc)?;
    Ok(())
}

/// The address that binds a packet socket to every protocol of one interface.
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
    // SAFETY: `raw` is a whole, initialised `sockaddr_ll` that outlives the call, and no length is claimed.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), None) };
    address.ok_or_else(|| Errno::EINVAL.into())
}

/// Turns an open `/dev/net/tun` into the TUN interface `name`, without a header before each packet.
pub(crate) fn tun_attach(tun: BorrowedFd<'_>, name: &str) -> io::Result<()> {
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
            ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        },
    };
    // SAFETY:
    // - `request` is a whole `ifreq` whose name ends with a zero byte, alive during the call;
    // - TUNSETIFF reads it and writes back the name only, inside the same structure;
    // - the descriptor stays open while it is borrowed.
    let rc = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    Errno::result(rc)?;
    Ok(())
}

/// The processor's time-stamp counter.
#[cfg(target_arch = "x86_64")]
pub(crate) fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux leaves it to programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Executes an instruction that does nothing; `MARK` stands where others have their operand's address.
#[cfg(target_arch = "x86_64")]
pub(crate) fn mark<const MARK: i32>() {
    // SAFETY: a NOP with an operand only takes time. The operand's address is not computed, and nothing is there to be
    // read: no memory, no stack, no register and no flag changes.
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
    // SAFETY: `parameters` is a whole `sched_param` that outlives the call; 0 is the calling thread.
    let rc = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    Errno::result(rc)?;
    Ok(())
}
