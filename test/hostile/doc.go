// SPDX-License-Identifier: Apache-2.0

// Package hostile attacks real daemons: as a stranger, as a pod, and as somebody who has
// the secret. A [Bed] is a lab with a mesh whose pods talk to each other; an [Attack] is
// what is done to one of its nodes. Meanwhile a newcomer has to join and an honest verdict
// to arrive, and afterwards everything has to be as it was.
//
// All of it is built with the tag hostile, with which package gossip has what an attacker
// needs, too.
package hostile
