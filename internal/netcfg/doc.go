// SPDX-License-Identifier: Apache-2.0

// Package netcfg turns a [mesh.Topology] into the configuration of a host.
//
// One value, the [State], holds everything that meshd owns on a host: the WireGuard
// device and its peers, addresses, routes, the firewall, kernel parameters. It is used
// twice. [Desired] computes the state that a topology asks for, and package host observes
// the current state. [Diff] compares the two and returns a [Plan], which a person can
// read and package host applies:
//
//	mesh.Topology ─► Desired ─► State ─┐
//	                                   ├─► Diff ─► Plan ─► Kernel.Apply
//	kernel ─► Kernel.Observe ─► State ─┘
//
// This package is pure: it does no input or output and has no clock. It also keeps no
// memory between calls. So a change that someone else made to the host is a difference
// like any other, and the next plan completes one that was only partly applied.
//
// Everything that meshd owns carries a mark: devices have a link alias, routes have the
// protocol [RouteProtocol], firewall rules are in the table [FirewallTable]. Nothing
// without such a mark is changed or removed. The packet filters of other programs are
// read too, because an accept rule of ours can't undo a drop rule of theirs. Where
// iptables would drop packets of the mesh, [Accept] rules are added to its tables. They
// are recognized by their comment.
//
// # WireGuard
//
// A change must not disturb any peer except the ones it is about. So a plan never
// replaces the list of peers or the allowed IPs of a peer. It adds, moves and removes
// single entries, additions first. It sets an endpoint only if the peer has no live
// session: the kernel learns better endpoints from a session. It turns a keepalive on
// only after the first handshake: WireGuard sends a packet at that moment, and two ends
// that start a handshake at the same time make both handshakes fail. The caller of this
// package decides which end starts.
package netcfg
