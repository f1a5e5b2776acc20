// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"maps"
	"sync"
)

// counters counts what gossip has dropped, by reason.
type counters struct {
	mu     sync.Mutex
	counts map[string]uint64
}

func (c *counters) add(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[reason]++
}

func (c *counters) snapshot() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.counts)
}

// Meaning says in a few words what it means that something was dropped for a reason, a key of
// mesh.View.Counters.
func Meaning(reason string) string { return meanings[reason] }

// meanings has every reason. What is usual in a healthy mesh says so.
var meanings = map[string]string{
	"call-limit":         "a node calls, asks or orders too often",
	"call-overload":      "calls, questions or orders came faster than they were taken",
	"call-stranger":      "a call, a question or an order of a node that is not known here",
	"call-stray":         "a call, a question or an order for a node that is not there; usual while nodes come and go",
	"dial-rejected":      "the other side has another secret",
	"member-evicted":     "others called this node dead; it has joined again",
	"object-buried":      "of a node that was forgotten or revoked",
	"object-conflict":    "two objects of one node with the same number; see the problems",
	"object-content":     "can't be decoded: damaged, or of a newer version",
	"object-full":        "no room for more objects of this kind; see the problems",
	"object-kind":        "of a kind that this version does not know: of a newer one",
	"object-signature":   "the signature is wrong; see the problems",
	"object-size":        "too long",
	"object-stale":       "a newer one is known; usual while changes spread",
	"object-unread":      "the rest of a packet with forged objects",
	"object-untrusted":   "of a node that cluster.trusted does not name",
	"object-version":     "of another version of the format",
	"packet-carried":     "came over the TCP stream of another node",
	"packet-cluster":     "of another cluster with the same secret",
	"packet-content":     "can't be decoded: damaged, or of a newer version",
	"packet-kind":        "of a kind that this version does not know: of a newer one",
	"packet-no-path":     "no address of the node was known; usual while nodes join",
	"packet-overload":    "packets came faster than they were handled",
	"packet-own":         "this node's own, sent back",
	"packet-refused":     "memberlist would not take it",
	"packet-replayed":    "came twice or much too late; usual where a network doubles packets",
	"packet-sealed":      "another secret, or none: strangers and port scanners; usual on the internet",
	"packet-size":        "too long to be sent",
	"packet-unsent":      "the kernel would not send it: no route, or a full buffer",
	"remembered-content": "on disk, and no longer valid; usual after an upgrade",
	"state-content":      "a whole state that can't be decoded",
	"stream-broken":      "ended before the greeting: port scanners; usual on the internet",
	"stream-carrier":     "for datagrams, and not wanted here",
	"stream-cluster":     "of a cluster with other settings; see the problems",
	"stream-limit":       "too many at once; the oldest were closed",
	"stream-proof":       "does not prove the identity that it claims",
	"stream-sealed":      "another secret; see the problems",
	"stream-tls":         "no TLS greeting: port scanners; usual where relay.listen is set",
	"stream-version":     "of another version of the format",
}
