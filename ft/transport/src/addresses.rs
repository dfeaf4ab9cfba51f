//! Addresses as operators write them, by one rule wherever they do: `HOST:PORT`, where HOST is a name, an
//! IPv4 address, or an IPv6 address in brackets, with its interface if it counts on one link only:
//! `[fe80::1%eth0]:7000`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};

use nix::net::if_::if_nametoindex;

/// The address that `text` means on this host. A name means the first one of its addresses.
///
/// # Errors
/// What is wrong with it, to follow a colon.
pub fn resolve(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = text.rsplit_once(':').ok_or("there is no port")?;
    let port: u16 = port.parse().map_err(|_| "its port is not a number up to 65535")?;
    let found = match host.strip_prefix('[') {
        Some(rest) => v6(rest.strip_suffix(']').ok_or("its bracket is not closed")?, port)?,
        None if host.is_empty() => return Err("there is no address".to_owned()),
        None if host.contains(':') => return Err(format!("an IPv6 address goes into brackets: [{host}]:{port}")),
        None => {
            let mut all = (host, port).to_socket_addrs().map_err(|error| error.to_string())?;
            all.next().ok_or_else(|| format!("{host} has no address"))?
        }
    };
    match found {
        SocketAddr::V6(address) if address.ip().is_unicast_link_local() && address.scope_id() == 0 => {
            let ip = address.ip();
            Err(format!("{ip} is an address of one link: say of which one, as in [{ip}%eth0]:{port}"))
        }
        _ => Ok(found),
    }
}

fn v6(text: &str, port: u16) -> Result<SocketAddr, String> {
    let (ip, scope) = text.split_once('%').map_or((text, None), |(ip, scope)| (ip, Some(scope)));
    let ip: Ipv6Addr = ip.parse().map_err(|_| format!("{ip} is not an IPv6 address"))?;
    let scope = match scope {
        None => 0,
        Some(scope) => scope
            .parse()
            .or_else(|_| if_nametoindex(scope).map_err(|_| format!("there is no network interface {scope}")))?,
    };
    Ok(SocketAddrV6::new(ip, port, 0, scope).into())
}

/// What another host calls its `address`, as this one reaches it: interfaces have numbers of their own on
/// each host, and the one that `near` is on is on the same link.
#[must_use]
pub fn as_seen_here(address: SocketAddr, near: SocketAddr) -> SocketAddr {
    match (address, near) {
        (SocketAddr::V6(mut theirs), SocketAddr::V6(near)) if theirs.ip().is_unicast_link_local() => {
            theirs.set_scope_id(near.scope_id());
            theirs.into()
        }
        _ => address,
    }
}

/// The address of any port of `address`'s host and interface.
pub(crate) fn any_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}

/// All addresses of this host, of the same kind as `address`.
pub(crate) fn anywhere(address: SocketAddr) -> SocketAddr {
    let any = match address.ip() {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    (any, 0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_both_kinds_of_addresses_are_resolved() {
        assert_eq!(resolve("10.0.0.2:7000"), Ok(([10, 0, 0, 2], 7000).into()));
        assert_eq!(resolve("[fd00::2]:7001"), Ok("[fd00::2]:7001".parse().unwrap()));
        assert!(resolve("localhost:7000").unwrap().ip().is_loopback());
        let loopback = if_nametoindex("lo").unwrap();
        for text in ["[fe80::1%lo]:7000".to_owned(), format!("[fe80::1%{loopback}]:7000")] {
            let address = resolve(&text).unwrap();
            let expected = SocketAddrV6::new("fe80::1".parse().unwrap(), 7000, 0, loopback);
            assert_eq!(address, expected.into(), "{text}");
            // As it comes back from where it was stored as text.
            assert_eq!(resolve(&address.to_string()), Ok(address));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("here", "there is no port"),
            (":7000", "there is no address"),
            ("10.0.0.2:70000", "its port is not"),
            ("fd00::2:7000", "goes into brackets: [fd00::2]:7000"),
            ("[fd00::2:7000", "its bracket is not closed"),
            ("[10.0.0.2]:7000", "10.0.0.2 is not an IPv6 address"),
            ("[fe80::1]:7000", "say of which one, as in [fe80::1%eth0]:7000"),
            ("[fe80::1%nosuch]:7000", "there is no network interface nosuch"),
            ("no.such.host.invalid:7000", ""),
        ] {
            let error = resolve(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn an_address_of_a_link_is_reached_by_our_own_interface() {
        let at = |scope| SocketAddr::from(SocketAddrV6::new("fe80::9".parse().unwrap(), 7, 0, scope));
        assert_eq!(as_seen_here(at(5), at(2)), at(2));
        let global = "[fd00::9]:7".parse().unwrap();
        assert_eq!(as_seen_here(global, at(2)), global);
        assert_eq!(any_port(at(5)), SocketAddrV6::new("fe80::9".parse().unwrap(), 0, 0, 5).into());
    }
}
