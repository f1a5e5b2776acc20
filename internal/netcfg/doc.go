// SPDX-License-Identifier: Apache-2.0

// Package netcfg turns a [mesh.Topology] into the configuration of a host.
//
// There is one value for everything of ours on a host, the [State]: the
// WireGuard device and its peers, addresses, routes, the firewall, kernel
// parameters. It is used twice. [Desired] computes the state that a topology
// asks for; package host observes the one that is there. [Diff] compares the two
// and yields a [Plan], which a person can read and package host applies:
//
//	mesh.Topology ─► Desired ─► State ─┐
//	                                   ├─► Diff ─► Plan ─► Kernel.Apply
//	kernel ─► Kernel.Observe ─► State ─┘
//
// All of this package is pure: it reads and writes nothing, and has no clock. It
// remembers nothing either, so a change that someone else made to the host is a
// difference like any other, and a plan that was applied by half is continued by
// the next one.
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
package netcfg
