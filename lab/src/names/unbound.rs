//! unbound, as a real upstream: it asks the scripted resolver, and has a zone of its own.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::stub::{A, Ask};
use super::{RESOLVER, UNBOUND, right};
use crate::address::Family;
use crate::netns::Netns;
use crate::{tool, wait};

/// The running unbound; ended when it is dropped.
#[derive(Debug)]
pub struct Unbound(Child);

impl Unbound {
    /// Starts it at [`UNBOUND`] and waits until it answers. Of its own it knows `n1.own.fresh.test` and `n2.own.fresh.test`.
    pub(super) fn start(netns: &Netns) -> Result<Unbound> {
        tool::require(&["unbound"])?;
        let dir = netns.run().dir().display().to_string();
        let config = format!("{dir}/unbound.conf");
        let own: String = [1, 2]
            .map(|n| {
                let address = right(n, Family::V4);
                format!("  local-data: \"n{n}.own.fresh.test. 300 A {address}\"\n")
            })
            .concat();
        let (here, there) = (UNBOUND.ip(), RESOLVER.ip());
        std::fs::write(
            &config,
            format!(
                "server:\n  interface: {here}\n  access-control: 172.31.0.0/24 allow\n  outgoing-interface: {here}\n  \
                 chroot: \"\"\n  username: \"\"\n  directory: \"{dir}\"\n  pidfile: \"\"\n  use-syslog: no\n  \
                 logfile: \"{dir}/unbound.log\"\n  module-config: \"iterator\"\n  local-zone: \"test.\" nodefault\n  \
                 local-zone: \"own.fresh.test.\" static\n{own}\
                 forward-zone:\n  name: \"test.\"\n  forward-addr: {there}\n\
                 remote-control:\n  control-enable: no\n"
            ),
        )?;
        let mut command = netns.command("unbound");
        command.args(["-d", "-p", "-c", &config]);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let unbound = Unbound(child);
        wait::until_true("unbound", Duration::from_secs(10), || {
            let ask = Ask::new("n1.own.fresh.test", A)
                .at(UNBOUND)
                .from(UNBOUND.ip());
            let reply = netns.enter(|| ask.send(Duration::from_millis(200)))?;
            ensure!(reply.addresses == [right(1, Family::V4)], "{reply:?}");
            Ok(true)
        })?;
        Ok(unbound)
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
