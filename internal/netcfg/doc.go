// SPDX-License-Identifier: Apache-2.0

// Package netcfg turns a [mesh.Topology] into the configuration of a host.
//
// There is one value for everything of ours on a host, the [State]: the
// WireGuard device and its peers, addresses, routes, the firewall, kernel
// parameters. It is used twice. [Desired] computes the state that a topology
// asks for; a [Host] observes the one that is there. [Diff] compares the two
// and yields a [Plan], which a person can read and the Host applies:
//
//	mesh.Topology ─► Desired ─► State ─┐
//	                                   ├─► Diff ─► Plan ─► Host.Apply
//	kernel ───► Host.Observe ─► State ─┘
//
// Desired and Diff are pure. They remember nothing, so a change that someone
// else made to the host is a difference like any other, and a plan that was
// applied by half is continued by the next one.
//
// What is ours is known by its mark: the devices by their link alias, routes by
// [RouteProtocol], firewall rules by the table [FirewallTable]. Nothing else is
// ever changed or removed. Others' packet filters are looked at too, because an
// accept of ours can't undo their drop: where iptables would drop packets of the
// mesh, [Accept] rules go into its tables, known by their comment.
//
// # WireGuard
//
// A change must not disturb the peers that it is not about. So a plan never
// replaces the list of peers or a peer's allowed IPs; it adds, moves and
// removes single ones, additions first. It writes an endpoint only where the
// kernel has no live session to have learned a better one from. It switches a
// keepalive on only after the first handshake: WireGuard sends a packet in that
// instant, and two ends that begin at once destroy each other's handshakes. Who
// speaks first is decided by whoever runs this package.
//
// # Firewall
//
// The rules are nft text and go to the kernel through sigs.k8s.io/knftables,
// which runs `nft -f` once for the whole table, so that no packet meets half a
// change. google/nftables would need no binary for that, but there a rule is a
// list of register operations: nobody could read it in a plan, compare it with
// what `nft list ruleset` shows, or try it by hand. One process for a change,
// which is rare, is a fair price. Looking is frequent, so that is done by
// netlink, with google/nftables and without a process. The kernel doesn't keep
// a rule's text, and nft prints it in a form that differs between versions: so
// a rule carries a hash of its text as a comment, and the hashes are compared.
package netcfg
