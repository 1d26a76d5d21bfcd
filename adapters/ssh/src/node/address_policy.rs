//! Where the agent connects to for a client. Judged on the resolved address, which is also the one connected.
//!
//! Private and loopback addresses are what `ssh -L` is for (`-L 5432:localhost:5432`), and a user with a
//! shell reaches them anyway. Addresses that hand out the machine's own credentials are refused: the agent
//! may be root where the user is not.

use std::net::IpAddr;
use wayleave_net::address_refusal;

/// Why an address is not connected to.
pub(crate) fn refusal(address: IpAddr) -> Option<&'static str> {
    address_refusal(address)
}
