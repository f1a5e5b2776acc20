// SPDX-License-Identifier: Apache-2.0

package gossip

import "time"

// Sizes of what travels.
const (
	// formatVersion is the first byte of every packet and every hello.
	formatVersion = 2

	// maxPacket is the largest UDP payload: the smallest MTU of an IPv6 link
	// (RFC 8200, section 5), which is also the least that a tunnel of the mesh
	// has, minus 40 bytes of IPv6 header and 8 of UDP header.
	maxPacket = 1280 - 40 - 8

	// maxObject leaves room in a packet for the headers around one object.
	maxObject = 1024

	// maxHello bounds the sealed hello of a stream, the only thing that is read
	// from somebody who has proved nothing.
	maxHello = 4096

	// maxFrame is the plaintext of one frame of a stream.
	maxFrame = 16 << 10

	// receiveBuffer holds what arrives while all nodes start at once.
	receiveBuffer = 2 << 20

	// maxState bounds what one stream may bring in.
	maxState = 8 << 20

	// maxQueued bounds what waits to be gossiped: a record of each node, as when all
	// start at once. What is left out is found by comparing stores.
	maxQueued = maxAuthors

	// maxRaised bounds what is read of sequences that were seen before a restart.
	maxRaised = 32 * maxAuthors

	// maxForged is how many objects with a wrong signature may come in one packet or
	// state before the rest of it is left unread. No node of ours passes on one.
	maxForged = 4

	// maxSequence leaves room to go beyond every sequence that is accepted, and
	// is never reached by counting.
	maxSequence uint64 = 1 << 48

	// maxSenders bounds what is remembered of senders. It is far above the size
	// of any mesh; only someone with the secret can reach it.
	maxSenders = 4096
	// maxDialBacks bounds how many nodes are dialled back at the same time.
	maxDialBacks = 16
)

// Limits of inbound streams, see places. A stream that is over one of them is reset.
// A descriptor limit below 8192 lowers those in all.
const (
	maxPendingStreams   = 2048 // in all, that have not proved themselves; each takes some 8 KiB
	maxPendingKnown     = 512  // the same, from addresses of known nodes
	maxPendingPerSource = 64   // the same, of one source; a whole office may start at once
	maxStreams          = 128  // that have
	maxStreamsPerNode   = 8    // the same, of one node: an honest one rarely has two
)

// Timings.
const (
	// freshPath is how long an address from which something authenticated came
	// is taken to work.
	freshPath = 3 * time.Second
	// pathPatience is how long an answer may take before the next path is tried:
	// two round trips to the other side of the world.
	pathPatience = 750 * time.Millisecond
	// pathMemory is how long an address is remembered in which a node was seen.
	pathMemory = 10 * time.Minute
	// dialBackPeriod is how often a node is dialled back at one address, and openFor
	// how long it takes an address for open at which it was dialled. Some fail.
	dialBackPeriod = time.Minute
	openFor        = 10 * time.Minute
	// viewPathFor is how long an address is shown as a node's path.
	viewPathFor = 30 * time.Second
	// noticeFor is how long a problem is shown after it was last met.
	noticeFor = 3 * time.Minute

	helloTimeout = 5 * time.Second
	dialTimeout  = 5 * time.Second
	// dialStagger is the head start of a path over the next (RFC 8305, section 5).
	dialStagger = 250 * time.Millisecond

	joinBackoffMin = 100 * time.Millisecond
	joinBackoffMax = 10 * time.Second
	// joinUnreached is how often a join address that never answered is asked
	// again by a node that has found others: its cluster may be another half.
	joinUnreached = time.Minute
	// rejoinInterval is how often one remembered node that is not alive is asked.
	// Memberlist forgets members that it has buried, so that without this a
	// split would last for ever.
	rejoinInterval = 10 * time.Second
	// antiEntropy is the mean time between two comparisons with a random node.
	antiEntropy = 1500 * time.Millisecond
	// duplicateAfter tells a running twin from stale records of an earlier
	// instance, which all arrive within moments.
	duplicateAfter = 10 * time.Second
)

// duplicateTimes is how often a record of ours from another instance may go
// beyond ours before that instance is taken to be running.
const duplicateTimes = 2

// followUps are the times after the start at which a random member is joined
// once more: they cut a mass start through one seed from minutes to seconds.
var followUps = []time.Duration{2 * time.Second, 6 * time.Second, 14 * time.Second}

// Fan-out of an object that is new here. Below the first number everybody gets
// it at once; above, gossip and anti-entropy see to the rest.
const (
	pushAll  = 8
	pushSome = 4
	// pushUrgent is the same for verdicts: while they are on their way, packets
	// go to a gateway that is not there.
	pushUrgent = 64
)

// syntheticPort is the constant port of the synthetic addresses. It is never
// dialled.
const syntheticPort = 7946
