//! What a hold takes from the kernel and gives back; needs root.

#[path = "conformance/namespace.rs"]
mod namespace;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use engine::port::Port;
use io::packet::{Changes, Hold, HoldConfig, HoldError, PacketConfig, PacketPort};
use namespace::{sh, with_namespace};

fn config(state_dir: &Path) -> HoldConfig {
    HoldConfig {
        interface: "left".to_owned(),
        management_interface: Some("mgmt".to_owned()),
        state_dir: state_dir.to_owned(),
    }
}

/// A held interface `left` with a neighbour `right` in front of it, and a management interface.
fn set_up() {
    sh("ip link set lo up
        ip link add mgmt type veth peer name mgmt-peer
        ip link add left type veth peer name right
        sysctl -qw net.ipv6.conf.left.disable_ipv6=0
        ip addr add 192.0.2.1/24 dev left
        ip addr add 192.0.2.9/24 dev left
        ip addr add 2001:db8:1::1/64 dev left nodad
        ip link set left up
        ip link set right up
        ip route add 198.51.100.0/24 via 192.0.2.7 dev left metric 77
        ip route add 203.0.113.0/24 via 10.9.9.9 dev left onlink
        ip -6 route add 2001:db8:2::/48 via 2001:db8:1::7 dev left");
}

/// All that a hold changes, in the words of `ip` and `nft`, without ages.
fn state() -> String {
    sh(
        "ip -o addr show dev left | sed '/scope link/d; s/valid_lft.*//'
        ip route show dev left; ip -6 route show dev left | sed '/^fe80/d'
        cat /proc/sys/net/ipv6/conf/left/disable_ipv6
        ip -o link show dev left | sed 's/.*<//; s/>.*//'
        nft list tables netdev",
    )
}

/// Holds `left` without an end. A kill runs no drop, but closes the descriptors, and so the locks: notes in a directory of
/// their own have none.
fn left_by_a_killed_process(dir: &Path) -> tempfile::TempDir {
    // Of what is static nothing is dropped, and nothing is lost.
    static KEPT: Mutex<Vec<Hold>> = Mutex::new(Vec::new());
    let hold = Hold::open(&config(dir)).expect("left is held");
    KEPT.lock().expect("no panic holds it").push(hold);
    let elsewhere = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(dir).expect("the directory is there") {
        let entry = entry.expect("it can be read");
        std::fs::copy(entry.path(), elsewhere.path().join(entry.file_name())).expect("a copy");
    }
    elsewhere
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_hold_silences_the_kernel_and_gives_everything_back() {
    with_namespace(
        "a_hold_silences_the_kernel_and_gives_everything_back",
        || {
            let dir = tempfile::tempdir().expect("a directory");
            set_up();
            let before = state();
            assert!(before.contains("onlink") && before.contains("2001:db8:2::/48"));
            let hold = Hold::open(&config(dir.path())).expect("left is held");
            let held = state();
            assert!(
                !held.contains("192.0.2") && !held.contains("2001:db8"),
                "{held}"
            );
            assert!(held.contains("neuwerk_hold_left"), "{held}");
            drop(hold);
            assert_eq!(state(), before);
        },
    );
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_port_sees_frames_that_the_kernel_does_not() {
    with_namespace("a_port_sees_frames_that_the_kernel_does_not", || {
        let dir = tempfile::tempdir().expect("a directory");
        set_up();
        let _hold = Hold::open(&config(dir.path())).expect("left is held");
        let mut left = PacketPort::open(&PacketConfig::new("left")).expect("left opens");
        let mut right = PacketPort::open(&PacketConfig::new("right")).expect("right opens");
        // Who has 10.0.0.1? The kernel answers for any address of the host on any interface.
        sh("ip addr add 10.0.0.1/32 dev lo");
        let mut request = right.alloc(42).expect("a buffer");
        let arp: [u8; 42] = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2,
            0, 0, 0, 0, 9, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1,
        ];
        engine::port::Packet::bytes_mut(&mut request).copy_from_slice(&arp);
        assert_eq!(right.tx_burst(&mut vec![request]), 1);
        // Between the two ends of a veth in one namespace delivery is done when sending returns.
        assert_eq!(left.rx_burst(&mut Vec::new(), 8), 1, "the port sees it");
        assert_eq!(right.rx_burst(&mut Vec::new(), 8), 0, "the kernel does not");
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn what_others_give_back_to_the_kernel_is_held_again() {
    with_namespace("what_others_give_back_is_held_again", || {
        let dir = tempfile::tempdir().expect("a directory");
        set_up();
        let before = state();
        let mut hold = Hold::open(&config(dir.path())).expect("left is held");
        let held = state();
        let again = |hold: &mut Hold| hold.hold_again().expect("it can be held");
        assert!(!again(&mut hold));
        for change in [
            "nft flush ruleset",
            "ip addr add 192.0.2.1/24 dev left",
            "sysctl -qw net.ipv6.conf.left.disable_ipv6=0",
            "sysctl -qw net.ipv6.conf.left.disable_ipv6=0; ip addr add 2001:db8:1::1/64 dev left nodad; nft flush ruleset",
        ] {
            sh(change);
            assert_ne!(state(), held, "{change}");
            assert!(again(&mut hold), "{change}");
            assert_eq!(state(), held, "{change}");
            assert!(!again(&mut hold), "{change}");
        }
        // What is configured meanwhile is there at the end.
        sh("ip addr add 192.0.2.77/32 dev left");
        assert!(again(&mut hold));
        assert_eq!(state(), held);
        drop(hold);
        assert!(state().contains("192.0.2.77/32"));
        sh("ip addr del 192.0.2.77/32 dev left");
        assert_eq!(state(), before);
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn changes_of_rules_and_addresses_are_told() {
    with_namespace("changes_of_rules_and_addresses_are_told", || {
        set_up();
        let changes = Changes::listen().expect("the kernel has nftables");
        let told = || changes.wait(Duration::ZERO).expect("it can be waited for");
        assert!(!told());
        for change in [
            "nft add table netdev other",
            "nft flush ruleset",
            "ip addr add 192.0.2.77/32 dev left",
            "ip addr add 2001:db8:1::77/128 dev left",
        ] {
            sh(change);
            assert!(told(), "{change}");
            assert!(!told(), "{change}");
        }
    });
}

/// A flush of all rules takes the chain of a killed process too. Its addresses are still missed.
#[test]
#[ignore = "needs root; make test runs it"]
fn what_a_killed_process_left_is_put_right_although_its_rules_were_flushed() {
    with_namespace("what_a_killed_process_left_although_flushed", || {
        let dir = tempfile::tempdir().expect("a directory");
        set_up();
        let before = state();
        let elsewhere = left_by_a_killed_process(dir.path());
        sh("nft flush ruleset");
        drop(Hold::open(&config(elsewhere.path())).expect("left is held"));
        assert_eq!(state(), before);

        let elsewhere = left_by_a_killed_process(elsewhere.path());
        sh("nft flush ruleset");
        Hold::give_back_others(elsewhere.path(), &[]);
        assert_eq!(state(), before);
    });
}

/// What configures the interface again has no word for IPv6 that is off.
#[test]
#[ignore = "needs root; make test runs it"]
fn ipv6_comes_back_although_only_the_rest_was_given_back() {
    with_namespace("ipv6_comes_back_although_only_the_rest", || {
        let dir = tempfile::tempdir().expect("a directory");
        set_up();
        sh("ip addr del 192.0.2.9/24 dev left");
        let before = state();
        let put_back = "nft flush ruleset
            ip addr add 192.0.2.1/24 dev left
            ip route add 198.51.100.0/24 via 192.0.2.7 dev left metric 77
            ip route add 203.0.113.0/24 via 10.9.9.9 dev left onlink";
        let elsewhere = left_by_a_killed_process(dir.path());
        sh(put_back);
        drop(Hold::open(&config(elsewhere.path())).expect("left is held"));
        assert_eq!(state(), before);

        let elsewhere = left_by_a_killed_process(elsewhere.path());
        sh(put_back);
        Hold::give_back_others(elsewhere.path(), &[]);
        assert_eq!(state(), before);
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn what_a_killed_process_left_is_put_right() {
    with_namespace("what_a_killed_process_left_is_put_right", || {
        let dir = tempfile::tempdir().expect("a directory");
        set_up();
        let before = state();
        let elsewhere = left_by_a_killed_process(dir.path());
        sh("ip addr add 192.0.2.77/32 dev left");

        let again = Hold::open(&config(elsewhere.path())).expect("the left-over is no obstacle");
        assert_eq!(sh("nft list tables netdev").lines().count(), 1);
        drop(again);
        sh("ip addr del 192.0.2.77/32 dev left");
        assert_eq!(state(), before);
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn an_interface_whose_address_has_changed_is_put_right() {
    with_namespace("an_interface_whose_address_has_changed", || {
        let dir = tempfile::tempdir().expect("a directory");
        set_up();
        let before = state();
        let mut left = left_by_a_killed_process(dir.path());
        for last in [7, 8] {
            sh(&format!("ip link set left address 02:00:00:00:00:0{last}"));
            left = left_by_a_killed_process(left.path());
        }
        drop(Hold::open(&config(left.path())).expect("left is held"));
        assert_eq!(state(), before);
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn what_is_no_data_port_any_more_is_given_back() {
    with_namespace("what_is_no_data_port_any_more", || {
        let dir = tempfile::tempdir().expect("a directory");
        set_up();
        let before = state();
        let give_back = |dir: &Path, own: &str| Hold::give_back_others(dir, &[own.to_owned()]);
        let left = left_by_a_killed_process(dir.path());
        let held = state();
        give_back(dir.path(), "right");
        assert_eq!(state(), held, "its note is locked: somebody holds it");
        give_back(left.path(), "left");
        assert_eq!(state(), held, "it is our own");
        give_back(left.path(), "right");
        assert_eq!(state(), before);

        // What has been given back is left alone.
        sh("ip addr add 192.0.2.77/32 dev left");
        let changed = state();
        give_back(left.path(), "right");
        give_back(&left.path().join("none"), "right");
        assert_eq!(state(), changed);
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn what_is_no_data_port_any_more_may_have_another_name_or_have_gone() {
    with_namespace("what_is_no_data_port_any_more_may_have_gone", || {
        let dir = tempfile::tempdir().expect("a directory");
        set_up();
        let left = left_by_a_killed_process(dir.path());
        sh("ip link set left down; ip link set left name renamed; ip link set renamed up");
        Hold::give_back_others(left.path(), &["renamed".to_owned()]);
        assert!(!sh("ip addr show dev renamed").contains("192.0.2"));
        Hold::give_back_others(left.path(), &[]);
        assert!(sh("ip addr show dev renamed").contains("192.0.2.9/24"));
        assert_eq!(sh("nft list tables"), "");

        sh("ip link set renamed down; ip link set renamed name left");
        let dir = tempfile::tempdir().expect("a directory");
        let left = left_by_a_killed_process(dir.path());
        sh("ip link del left");
        Hold::give_back_others(left.path(), &[]);
        assert_eq!(sh("nft list tables"), "");
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn an_interface_is_held_once_and_never_the_management_one() {
    with_namespace(
        "an_interface_is_held_once_and_never_the_management_one",
        || {
            let dir = tempfile::tempdir().expect("a directory");
            set_up();
            let hold = Hold::open(&config(dir.path())).expect("left is held");
            let error = Hold::open(&config(dir.path())).err().expect("once");
            assert!(matches!(error, HoldError::Held { .. }), "{error}");
            drop(hold);
            let before = state();
            let management = HoldConfig {
                management_interface: Some("left".to_owned()),
                ..config(dir.path())
            };
            let error = Hold::open(&management).err().expect("never");
            assert!(matches!(error, HoldError::Management { .. }), "{error}");
            let missing = HoldConfig {
                interface: "nosuch".to_owned(),
                ..config(dir.path())
            };
            let error = Hold::open(&missing).err().expect("it is not there");
            assert!(
                matches!(error, HoldError::NoSuchInterface { .. }),
                "{error}"
            );
            assert_eq!(state(), before, "a refusal changes nothing");
        },
    );
}

#[test]
#[ignore = "needs root; make test runs it"]
fn an_interface_that_was_down_is_up_while_held() {
    with_namespace("an_interface_that_was_down_is_up_while_held", || {
        let dir = tempfile::tempdir().expect("a directory");
        sh("ip link add left type veth peer name right; ip addr add 192.0.2.1/24 dev left");
        let flags = || sh("ip -o link show dev left");
        assert!(!flags().contains(",UP"));
        let hold = Hold::open(&config(dir.path())).expect("left is held");
        assert!(flags().contains(",UP"));
        drop(hold);
        assert!(!flags().contains(",UP"));
        assert!(sh("ip -o addr show dev left").contains("192.0.2.1/24"));
    });
}

#[test]
#[ignore = "needs root; make test runs it"]
fn a_device_that_went_away_leaves_nothing() {
    with_namespace("a_device_that_went_away_leaves_nothing", || {
        let dir = tempfile::tempdir().expect("a directory");
        set_up();
        let hold = Hold::open(&config(dir.path())).expect("left is held");
        sh("ip link del left");
        drop(hold);
        assert_eq!(sh("nft list tables"), "");
    });
}
