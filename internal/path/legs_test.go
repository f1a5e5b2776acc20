// SPDX-License-Identifier: Apache-2.0

package path

import (
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

func TestStreamAddr(t *testing.T) {
	id := mesh.ID{0x20, 0x01, 0x0d, 0xb8, 15: 1}
	a := StreamAddr(id)
	if got, ok := StreamNode(a); !ok || got != id {
		t.Errorf("got %v, %v, want %v", got, ok, id)
	}
	for _, other := range []netip.AddrPort{
		{},
		netip.AddrPortFrom(netip.AddrFrom16(id), 0),
		netip.AddrPortFrom(netip.AddrFrom16(id).WithZone("eth0"), 0),
		netip.MustParseAddrPort("192.0.2.1:7946"),
	} {
		if _, ok := StreamNode(other); ok || other == a {
			t.Errorf("%s is taken for a stream", other)
		}
	}
}

// A node that has come to a relay by stream is bound as one that comes by UDP, and is not
// told its StreamAddr as an address at which it is seen.
func TestBindByStream(t *testing.T) {
	now := time.Unix(1700000000, 0)
	r := NewRelay([32]byte{1})
	id := mesh.ID{9, 15: 9}
	node, from := ShortOf(id), StreamAddr(id)
	answer := r.Bind(now, node, wgtypes.Key{2}, Message{Op: Bind}, from)
	if r.IsBound(now, node) || answer.Token == (Token{}) {
		t.Fatal("bound without a token")
	}
	answer = r.Bind(now, node, wgtypes.Key{2}, Message{Op: Bind, Token: answer.Token}, from)
	if !r.IsBound(now, node) {
		t.Error("not bound with the token")
	}
	told, err := ParseMessage(answer.Append(nil))
	if err != nil || told.Seen.IsValid() {
		t.Errorf("told %s, %v, want no address", told.Seen, err)
	}
}
