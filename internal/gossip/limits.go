// SPDX-License-Identifier: Apache-2.0

package gossip

import "time"

// Sizes of messages, in bytes, and numbers of objects.
const (
	// formatVersion is the first byte of every packet and every hello.
	formatVersion = 2

	// maxPacket is the largest UDP payload: the smallest MTU of an IPv6 link (RFC 8200,
	// section 5), which is also the smallest MTU of a tunnel of the mesh, minus 40 bytes
	// of IPv6 header and 8 of UDP header.
	maxPacket = 1280 - 40 - 8

	// maxObject leaves room in a packet for the headers around one object.
	maxObject = 1024

	// maxHello limits the encrypted hello of a stream, the only message that is read from
	// a peer before any check.
	maxHello = 4096

	// maxOpening limits what is read, below TLS, from a peer before it has proved its
	// identity: the first message of TLS, of which browsers make some 2 KiB, and a hello.
	maxOpening = 4<<10 + maxHello

	// maxFrame is the largest plaintext of one frame of a stream.
	maxFrame = 16 << 10
	// maxWrite is how much of a stream is encrypted before it is given to the kernel.
	maxWrite = 4 * maxFrame

	// receiveBuffer is enough for the packets that arrive while all nodes start at once.
	receiveBuffer = 2 << 20

	// maxState limits how much one stream may receive.
	maxState = 8 << 20

	// maxQueued limits how many objects wait to be gossiped: a record of each node, as
	// when all start at once. Objects that are left out are found by comparing stores.
	maxQueued = maxAuthors

	// maxRaised limits how many remembered sequences are read at a start.
	maxRaised = 32 * maxAuthors

	// maxForged is how many objects with a wrong signature may be in one packet or state
	// before the rest of it is ignored. Honest nodes never forward such an object.
	maxForged = 4

	// maxSequence leaves room above every accepted sequence, and is never reached by
	// counting.
	maxSequence uint64 = 1 << 48

	// maxSenders limits how many senders are remembered. It is far above the size of any
	// mesh; only an attacker with the secret can reach it.
	maxSenders = 4096
)

// Limits of inbound streams, see places. A stream that exceeds one of them is reset. If
// the process may open fewer than 8192 files, the total limits are lower.
const (
	maxPendingStreams   = 2048 // of peers that have not proved their identity; each takes some 8 KiB, in a handshake of TLS 30 KiB
	maxPendingKnown     = 512  // the same, from addresses of known nodes
	maxPendingPerSource = 64   // the same, from one source; all hosts of an office may start at once
	maxStreams          = 128  // of peers that have proved their identity
	maxStreamsPerNode   = 8    // the same, of one node: an honest node rarely has two

	maxCarriers          = 128 // that carry datagrams, one of each node
	maxCarriersPerSource = 64  // the same, from one source: the network of a company without UDP
)

// Timings.
const (
	// freshAddress is how long an address counts as working after an authenticated packet
	// came from it.
	freshAddress = 3 * time.Second
	// answerTimeout is how long an answer may take before the next address is tried: two
	// round trips to the other side of the world.
	answerTimeout = 750 * time.Millisecond
	// addressMemory is how long an address at which a node was seen is remembered.
	addressMemory = 10 * time.Minute
	// natMemory is how long a NAT lets packets in to a node after one of its own: two
	// minutes (RFC 4787, section 4.3).
	natMemory = 2 * time.Minute
	// noticeFor is how long a problem is shown after it was last seen.
	noticeFor = 3 * time.Minute

	helloTimeout = 5 * time.Second
	dialTimeout  = 5 * time.Second
	// dialStagger is the head start of one address over the next (RFC 8305, section 5).
	dialStagger = 250 * time.Millisecond

	joinBackoffMin = 100 * time.Millisecond
	joinBackoffMax = 10 * time.Second
	// joinEager is the longest pause between two attempts to reach an entry of the join
	// list that has never answered, for joinEagerFor: hosts that are set up together come
	// up within minutes, and halves of a mesh that know nothing of each other should meet
	// before pods run on both.
	joinEager    = 1500 * time.Millisecond
	joinEagerFor = 3 * time.Minute
	// joinUnreached is how often a join address that never answered is tried by a node
	// that has found other nodes: behind it may be the other half of a split cluster.
	joinUnreached = time.Minute
	// rejoinInterval is how often one remembered node that is not alive is tried.
	// Memberlist forgets dead members, so without this a split would last for ever.
	rejoinInterval = 10 * time.Second
	// antiEntropy is the mean time between two comparisons with random nodes.
	antiEntropy = 1500 * time.Millisecond
)

// followUps are the times after the start at which a random member is joined again. When
// all nodes start at once through one seed, this shortens convergence from minutes to
// seconds.
var followUps = []time.Duration{2 * time.Second, 6 * time.Second, 14 * time.Second}

// How many nodes get a new object at once. Up to pushAll members, all of them get it;
// with more members, pushSome get it, and gossip and anti-entropy reach the others.
const (
	pushAll  = 8
	pushSome = 4
	// pushUrgent is the limit for verdicts: until they arrive, packets are sent to a dead
	// gateway.
	pushUrgent = 64
)

// syntheticPort is the constant port of the synthetic addresses. It is never dialled.
const syntheticPort = 7946
