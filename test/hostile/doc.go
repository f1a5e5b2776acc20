// SPDX-License-Identifier: Apache-2.0

// Package hostile attacks real daemons: from outside, from a pod, and from a host that has
// the secret. A [Bed] is a lab with a mesh whose pods exchange packets; an [Attack] is
// directed at one of its nodes. During the attack a new node must be able to join and an
// honest verdict must arrive, and afterwards all must be as before. [Homes] is a mesh with a relay
// that an insider has taken over.
//
// It is built with the tag hostile, which also adds the attacker's side to package gossip.
package hostile
