//! What a program is started with: descriptors by name, those that it leaves, and which signals it hears.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Takes the descriptors that `text` names: the id of the process that is meant, then `NAME=NUMBER`, all separated by
/// spaces. Empty if another process is meant. A number that is no open descriptor is passed over.
pub fn take(text: &str) -> BTreeMap<String, OwnedFd> {
    let mut words = text.split_ascii_whitespace();
    let mut taken = BTreeMap::new();
    if words.next() != Some(std::process::id().to_string().as_str()) {
        return taken;
    }
    for (name, number) in words.filter_map(|word| word.rsplit_once('=')) {
        if let Some(fd) = number.parse().ok().and_then(take_one) {
            taken.insert(name.to_owned(), fd);
        }
    }
    taken
}

/// Has every descriptor but the three standard ones close on exec, until it is told otherwise.
///
/// # Errors
/// They cannot be listed.
pub fn leave_none() -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.parse::<RawFd>().ok())
            && number > 2
        {
            // SAFETY: touches no memory; a number that is no open descriptor any more is an error, which is no matter.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Has a program that is started hear every signal, whatever this thread leaves for others to read.
pub fn unmask(command: &mut Command) -> &mut Command {
    // SAFETY: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(hear_all) }
}

/// Has this thread hear every signal.
fn hear_all() -> std::io::Result<()> {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `none` is written before it is read, and both calls may be made between fork and exec.
    let result = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error)),
    }
}

fn take_one(number: RawFd) -> Option<OwnedFd> {
    if number <= 2 {
        return None;
    }
    // SAFETY: only asked for its flags, and given no number below zero; one that is not open is an error.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    // What this process has opened, or taken before, closes on exec, so that only descriptors that it was started with
    // and that nobody owns yet are left.
    let flags = fcntl_getfd(fd).ok()?;
    if flags.contains(FdFlags::CLOEXEC) {
        return None;
    }
    fcntl_setfd(fd, flags | FdFlags::CLOEXEC).ok()?;
    // SAFETY: open, as the calls above show, and owned by nobody, as said there.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn takes_what_was_inherited_once_and_nothing_else() {
        let own = File::open("/dev/null").expect("opens");
        let left = rustix::io::dup(&own).expect("duplicates").into_raw_fd();
        let (pid, owned) = (std::process::id(), own.as_raw_fd());
        assert!(take(&format!("{} a={left}", pid + 1)).is_empty());
        let text = format!("{pid} a={left} b={left} c={owned} d=1 e=-1 f=100000 g=x h");
        let taken = take(&text);
        assert_eq!(taken.keys().collect::<Vec<_>>(), ["a"]);
        assert!(take(&text).is_empty());
        assert!(take("").is_empty());
    }

    #[test]
    fn a_program_hears_signals_that_its_starter_leaves_alone() {
        use nix::sys::signal::{SigSet, Signal};
        use std::os::unix::process::ExitStatusExt;

        SigSet::from(Signal::SIGTERM)
            .thread_block()
            .expect("a mask can be set");
        let mut deaf = Command::new("sh");
        deaf.args(["-c", "kill -TERM $$; exit 3"]);
        assert_eq!(deaf.status().expect("there is a shell").code(), Some(3));
        let status = unmask(&mut deaf).status().expect("there is a shell");
        assert_eq!(status.signal(), Some(libc::SIGTERM));
        hear_all().expect("a mask can be set");
        let mask = SigSet::thread_get_mask().expect("it can be read");
        assert!(!mask.contains(Signal::SIGTERM));
    }

    #[test]
    fn leaves_nothing_that_was_not_meant_to_stay() {
        let own = File::open("/dev/null").expect("opens");
        let open = rustix::io::dup(&own).expect("duplicates");
        assert!(
            !fcntl_getfd(&open)
                .expect("is open")
                .contains(FdFlags::CLOEXEC)
        );
        leave_none().expect("there is /proc");
        assert!(
            fcntl_getfd(&open)
                .expect("is open")
                .contains(FdFlags::CLOEXEC)
        );
    }
}
