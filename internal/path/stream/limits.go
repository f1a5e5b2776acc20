// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"time"

	"github.com/meshd/meshd/internal/path"
)

// Bounds. A link takes some 200 KiB, and maxQueued more while its network is slow.
const (
	// maxAccepted is how many nodes may have streams to this one. Gossip has as many places
	// for them, and decides who loses his when there are more.
	maxAccepted = 128

	maxDatagram = path.MaxDatagram // so that a relay can forward whatever a stream carries

	// maxQueued is how many bytes of frames wait to be sent: a burst of a TCP connection in the
	// tunnel, whose throughput falls to a third if a burst is cut. On slow networks maxAge is
	// the tighter bound.
	maxQueued = 1024 << 10
	// maxQueuedGossip is room for a dozen packets of gossip, which are sent before the rest.
	maxQueuedGossip = 16 << 10
	// maxUnsent is how many bytes the kernel holds that it has not sent yet, beyond the queue
	// (TCP_NOTSENT_LOWAT). They can't be dropped.
	maxUnsent = 128 << 10

	// chunk is how much is read or written at once.
	chunk = 32 << 10
	// batch is how many datagrams are read or written at once.
	batch = 32

	// socketBuffer is what the local sockets may hold, in bytes of the kernel's count, which
	// is about twice that of the datagrams: WireGuard sends in bursts.
	socketBuffer = 1 << 20
)

// Timings.
const (
	// keepalive is after how long without a frame an empty one is sent. Many NATs and
	// firewalls forget a TCP connection after a few minutes.
	keepalive = 15 * time.Second
	// deadAfter is how long nothing may come: two keepalives were lost.
	deadAfter = 40 * time.Second
	// ackTimeout is how long what was sent may stay unacknowledged (TCP_USER_TIMEOUT). TCP
	// itself would try for a quarter of an hour.
	ackTimeout = 20 * time.Second
	// deadlineStep is how much later than after deadAfter or ackTimeout a stream may end, see deadline.
	deadlineStep = time.Second
	// maxAge is how long a frame may wait. TCP connections in the tunnel find their speed by the
	// loss of what is older, and calls and terminals are of no use beyond it.
	maxAge = 250 * time.Millisecond
	// idleAfter is how long a node may keep a stream here without using it.
	idleAfter = 10 * time.Minute
	// lingerFor is how long the socket of an accepted stream outlives it: WireGuard goes on
	// sending there, and the node opens a new stream within seconds.
	lingerFor = time.Minute

	redialMin = time.Second
	redialMax = 30 * time.Second
	// dialTimeout is for all addresses of a node together.
	dialTimeout = 10 * time.Second
)
