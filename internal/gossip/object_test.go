// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/mesh"
)

// signPayload returns what an encoder has returned as an object of an identity.
func signPayload(t testing.TB, n int, kind objectKind, payload []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := signObject(identity(n), "default", kind, payload)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func signRecord(t testing.TB, n int, r mesh.Record) []byte {
	t.Helper()
	payload, err := encodeRecord(r)
	return signPayload(t, n, kindRecord, payload, err)
}

func signTombstone(t testing.TB, n int, target mesh.ID, upTo uint64) []byte {
	t.Helper()
	payload, err := encodeTombstone(tombstone{identity(n).Public().(ed25519.PublicKey), target, upTo})
	return signPayload(t, n, kindTombstone, payload, err)
}

// fullRecord returns a record with every field set.
func fullRecord() mesh.Record {
	r := testRecord(0, 5)
	r.Location, r.NAT, r.ListenPort, r.GossipAddr = "aws", true, 51820, "gossip.example.com:7946"
	r.Endpoints = []mesh.Endpoint{
		{Host: "aws.example.com", Port: 51820, Source: mesh.EndpointConfigured},
		{Host: "2001:db8::1", Port: 51820, Source: mesh.EndpointOwn},
	}
	r.InternalIPs = []netip.Prefix{netip.MustParsePrefix("192.168.10.1/24")}
	r.AllowedLocationIPs = []netip.Prefix{netip.MustParsePrefix("192.168.10.0/24"), netip.MustParsePrefix("fd01::/48")}
	r.Withheld = []netip.Prefix{netip.MustParsePrefix("10.0.0.5/32"), netip.MustParsePrefix("fd02::/64")}
	return r
}

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// The format is a contract with nodes of other versions: an object that was signed once
// must remain readable, and must be signed in the same way for ever.
func TestObjectGolden(t *testing.T) {
	golden, err := os.ReadFile("testdata/objects.hex")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(golden))
	inOffice := fullRecord()
	inOffice.Term = mesh.GatewayTerm{Seat: 1, Since: 1700000000000}
	inOffice.Claim = mesh.Claim{Slot: 3, Confirmed: true, Time: 1800000000000, Since: 4}
	overTLS := fullRecord()
	overTLS.StreamPort = 443
	server := fullRecord()
	server.Etcd = mesh.EtcdWAN
	exit := fullRecord()
	exit.Exit = mesh.ExitFamilies{IPv6: true}
	serving := fullRecord()
	serving.Serving = []mesh.NetworkTerm{{Network: serving.AllowedLocationIPs[1], Since: 1700000000000}}
	serving.Unserved = serving.AllowedLocationIPs[:1]
	linked := fullRecord()
	linked.Linked = []mesh.LinkedNetwork{{Network: linked.AllowedLocationIPs[1], Cluster: "west"}}
	rotating := fullRecord()
	rotating.Secrets = []mesh.SecretHash{{1, 2, 3, 4}, {5, 6, 7, 8}}
	draining := verdict{testVerdict(0, 0, mesh.HealthDraining, 7), 8, 9}
	draining.Record = 10
	made := [][]byte{
		signRecord(t, 0, fullRecord()), signTombstone(t, 0, mesh.ID{1, 2, 3}, 9),
		signRecord(t, 0, inOffice), signVerdict(t, 0, verdict{testVerdict(0, 1, mesh.HealthDown, 3), 4, 5}), signVerdict(t, 0, draining),
		signRecord(t, 0, overTLS), signRecord(t, 0, server), signRecord(t, 0, exit), signRecord(t, 0, serving), signRecord(t, 0, linked), signRecord(t, 0, rotating),
	}
	for i, raw := range made {
		if got := hex.EncodeToString(raw); i >= len(lines) || got != lines[i] {
			t.Errorf("object %d: got\n%s\nwant another", i, got)
		}
	}
	for i, want := range map[int]mesh.Record{2: inOffice, 5: overTLS, 6: server, 7: exit, 8: serving, 9: linked, 10: rotating} {
		o, err := decodeObject("default", made[i])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, o.body.(recordBody).Record, comparePrefixes, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(mesh.Record{})); diff != "" {
			t.Errorf("record %d (-want +got):\n%s", i, diff)
		}
	}
	if got := len(made[0]); got > 400 {
		t.Errorf("a typical record takes %d bytes", got)
	}
}

func TestObjectRefused(t *testing.T) {
	good := signRecord(t, 0, testRecord(0, 1))
	changed := func(i int, b byte) []byte {
		c := bytes.Clone(good)
		c[i] = b
		return c
	}
	signed := func(kind objectKind, payload []byte) []byte {
		raw, err := signObject(identity(0), "default", kind, payload)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	with := func(field int, value any) []byte {
		fields := make(map[int]any)
		if err := cbor.Unmarshal(good[objectHeader:], &fields); err != nil {
			t.Fatal(err)
		}
		fields[field] = value
		payload, err := encoding.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		return signed(kindRecord, payload)
	}
	other, err := signObject(identity(1), "default", kindRecord, good[objectHeader:])
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		cluster string
		raw     []byte
		want    error
	}{
		{"good", "default", good, nil},
		{"other cluster", "other", good, errObjectSignature},
		{"signed by another", "default", other, errObjectSignature},
		{"signature changed", "default", changed(5, good[5]^1), errObjectSignature},
		{"kind changed", "default", changed(0, objectVersion<<4|byte(kindTombstone)), errObjectContent},
		{"unknown kind", "default", changed(0, objectVersion<<4|15), errObjectKind},
		{"unknown version", "default", changed(0, 0xf1), errObjectVersion},
		{"empty", "default", nil, errObjectSize},
		{"header only", "default", good[:objectHeader], errObjectSize},
		{"too long", "default", append(bytes.Clone(good), make([]byte, maxObject)...), errObjectSize},
		{"more behind", "default", signed(kindRecord, append(bytes.Clone(good[objectHeader:]), 0)), errObjectContent},
		{"a field that only newer nodes know", "default", with(200, "news"), nil},
		{"a term for a network that it does not name", "default", with(31, []int64{1}), errObjectContent},
		{"a link to a network that it does not name", "default", with(32, []string{"west"}), errObjectContent},
		{"hashes of secrets cut off", "default", with(33, []byte{1, 2, 3, 4, 5}), errObjectContent},
		{"field twice", "default", signed(kindRecord, []byte{0xa2, 1, 0x41, 0, 1, 0x41, 0}), errObjectContent},
		{"indefinite length", "default", signed(kindRecord, []byte{0xbf, 0xff}), errObjectContent},
		{"nested", "default", signed(kindRecord, append([]byte{0xa1, 0x18, 99}, append(bytes.Repeat([]byte{0x81}, 20), 0)...)), errObjectContent},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := decodeObject(tt.cluster, tt.raw); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// A field that only newer nodes know is signed, forwarded and ignored.
func TestUnknownFieldsSurvive(t *testing.T) {
	var fields map[int]any
	payload, err := encodeRecord(testRecord(0, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := cbor.Unmarshal(payload, &fields); err != nil {
		t.Fatal(err)
	}
	fields[200] = "news"
	if payload, err = encoding.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	raw, err := signObject(identity(0), "default", kindRecord, payload)
	if err != nil {
		t.Fatal(err)
	}
	o, err := decodeObject("default", raw)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore()
	if got := s.put(o); got != fresh || !bytes.Contains(s.raws()[0], []byte("news")) {
		t.Errorf("got %v, raw %q", got, s.raws()[0])
	}
}

func TestRecordLimits(t *testing.T) {
	prefix := netip.MustParsePrefix
	tests := []struct {
		name   string
		change func(*mesh.Record)
		ok     bool
	}{
		{"plain", func(*mesh.Record) {}, true},
		{"no slot", func(r *mesh.Record) { r.Claim.Slot = mesh.None }, true},
		{"slot below none", func(r *mesh.Record) { r.Claim.Slot = -2 }, false},
		{"slot too high", func(r *mesh.Record) { r.Claim.Slot = mesh.MaxSlots }, false},
		{"claim before 1970", func(r *mesh.Record) { r.Claim.Time = -1 }, false},
		{"sequence 0", func(r *mesh.Record) { r.Sequence = 0 }, false},
		{"no identity", func(r *mesh.Record) { r.Identity = nil }, false},
		{"no key", func(r *mesh.Record) { r.Key = [32]byte{} }, false},
		{"no name", func(r *mesh.Record) { r.Name = "" }, false},
		{"name of two labels", func(r *mesh.Record) { r.Name = "a.example.com" }, true},
		{"long name", func(r *mesh.Record) { r.Name = strings.Repeat("a", 64) }, false},
		{"name of every host", func(r *mesh.Record) { r.Name = "localhost" }, false},
		{"name of every host, with a domain", func(r *mesh.Record) { r.Name = "LocalHost.example.com" }, false},
		{"name that begins like that of every host", func(r *mesh.Record) { r.Name = "localhosts" }, true},
		{"address as the name", func(r *mesh.Record) { r.Name = "192.0.2.1" }, false},
		{"name with a space", func(r *mesh.Record) { r.Name = "a b" }, false},
		{"name with an escape", func(r *mesh.Record) { r.Name = "a\x1b[31m" }, false},
		{"location with a newline", func(r *mesh.Record) { r.Location = "a\nb" }, false},
		{"location of letters", func(r *mesh.Record) { r.Location = "Zürich" }, true},
		{"gateway wish", func(r *mesh.Record) { r.Gateway = "perhaps" }, false},
		{"seat", func(r *mesh.Record) { r.Term.Seat = maxSeats - 1 }, true},
		{"no such seat", func(r *mesh.Record) { r.Term.Seat = maxSeats }, false},
		{"seat below 0", func(r *mesh.Record) { r.Term.Seat = -1 }, false},
		{"a term from before 1970", func(r *mesh.Record) { r.Term.Since = -1 }, false},
		{"absurd sequence", func(r *mesh.Record) { r.Sequence = maxSequence + 1 }, false},
		{"MTU", func(r *mesh.Record) { r.MTU = 1 << 16 }, false},
		{"gossip address", func(r *mesh.Record) { r.GossipAddr = "[2001:db8::1]:7946" }, true},
		{"gossip address without port", func(r *mesh.Record) { r.GossipAddr = "example.com" }, false},
		{"gossip address port 0", func(r *mesh.Record) { r.GossipAddr = "example.com:0" }, false},
		{"endpoint host", func(r *mesh.Record) { r.Endpoints = []mesh.Endpoint{{Host: "a/b", Port: 1}} }, false},
		{"endpoint zone", func(r *mesh.Record) { r.Endpoints = []mesh.Endpoint{{Host: "fe80::1%eth0", Port: 1}} }, false},
		{"endpoint port", func(r *mesh.Record) { r.Endpoints = []mesh.Endpoint{{Host: "a.example"}} }, false},
		{"many endpoints", func(r *mesh.Record) { r.Endpoints = make([]mesh.Endpoint, mesh.MaxEndpoints+1) }, false},
		{"internal IP", func(r *mesh.Record) { r.InternalIPs = []netip.Prefix{prefix("10.0.0.5/24")} }, true},
		{"internal IP mapped", func(r *mesh.Record) { r.InternalIPs = []netip.Prefix{prefix("::ffff:10.0.0.5/120")} }, false},
		{"allowed", func(r *mesh.Record) { r.AllowedLocationIPs = []netip.Prefix{prefix("10.0.0.0/24")} }, true},
		{"allowed with host bits", func(r *mesh.Record) { r.AllowedLocationIPs = []netip.Prefix{prefix("10.0.0.5/24")} }, false},
		{"tiny MTU", func(r *mesh.Record) { r.MTU = mesh.MinMTU - 1 }, false},
		{"endpoint loopback", func(r *mesh.Record) { r.Endpoints = []mesh.Endpoint{{Host: "127.0.0.1", Port: 1}} }, false},
		{"endpoint multicast", func(r *mesh.Record) { r.Endpoints = []mesh.Endpoint{{Host: "ff02::1", Port: 1}} }, false},
		{"gossip address of the metadata service", func(r *mesh.Record) { r.GossipAddr = "169.254.169.254:80" }, false},
		{"internal IP loopback", func(r *mesh.Record) { r.InternalIPs = []netip.Prefix{prefix("127.0.0.53/32")} }, false},
		{"internal IP in everything", func(r *mesh.Record) { r.InternalIPs = []netip.Prefix{prefix("10.0.0.5/0")} }, false},
		{"allowed metadata service", func(r *mesh.Record) { r.AllowedLocationIPs = []netip.Prefix{prefix("169.254.169.254/32")} }, false},
		{"allowed default route", func(r *mesh.Record) { r.AllowedLocationIPs = []netip.Prefix{prefix("0.0.0.0/0")} }, false},
		{"allowed half of the default route", func(r *mesh.Record) { r.AllowedLocationIPs = []netip.Prefix{prefix("2000::/3")} }, false},
		{"secrets", func(r *mesh.Record) { r.Secrets = make([]mesh.SecretHash, mesh.MaxSecrets) }, true},
		{"many secrets", func(r *mesh.Record) { r.Secrets = make([]mesh.SecretHash, mesh.MaxSecrets+1) }, false},
		{"withheld", func(r *mesh.Record) { r.Withheld = []netip.Prefix{prefix("10.0.0.5/32")} }, true},
		{"many withheld", func(r *mesh.Record) {
			r.Withheld = slices.Repeat([]netip.Prefix{prefix("10.0.0.5/32")}, mesh.MaxWithheld+1)
		}, false},
		{"invalid withheld", func(r *mesh.Record) { r.Withheld = []netip.Prefix{{}} }, false},
		{"serves", func(r *mesh.Record) {
			r.AllowedLocationIPs = []netip.Prefix{prefix("10.0.1.0/24"), prefix("10.0.0.0/24")}
			r.Serving = []mesh.NetworkTerm{{Network: prefix("10.0.0.0/24"), Since: 1}}
		}, true},
		{"serves what it does not name", func(r *mesh.Record) { r.Serving = []mesh.NetworkTerm{{Network: prefix("10.0.0.0/24"), Since: 1}} }, false},
		{"can't serve", func(r *mesh.Record) {
			r.AllowedLocationIPs = []netip.Prefix{prefix("10.0.0.0/24")}
			r.Unserved = r.AllowedLocationIPs
		}, true},
		{"can't serve what it does not name", func(r *mesh.Record) { r.Unserved = []netip.Prefix{prefix("10.0.0.0/24")} }, false},
		{"serves what it can't serve", func(r *mesh.Record) {
			r.AllowedLocationIPs = []netip.Prefix{prefix("10.0.0.0/24")}
			r.Unserved, r.Serving = r.AllowedLocationIPs, []mesh.NetworkTerm{{Network: prefix("10.0.0.0/24"), Since: 1}}
		}, false},
		{"serves since before 1970", func(r *mesh.Record) {
			r.AllowedLocationIPs = []netip.Prefix{prefix("10.0.0.0/24")}
			r.Serving = []mesh.NetworkTerm{{Network: prefix("10.0.0.0/24"), Since: -2}}
		}, false},
		{"linked", func(r *mesh.Record) {
			r.AllowedLocationIPs = []netip.Prefix{prefix("10.0.1.0/24"), prefix("10.0.0.0/24")}
			r.Linked = []mesh.LinkedNetwork{{Network: prefix("10.0.0.0/24"), Cluster: "west"}}
		}, true},
		{"linked to what it does not name", func(r *mesh.Record) {
			r.Linked = []mesh.LinkedNetwork{{Network: prefix("10.0.0.0/24"), Cluster: "west"}}
		}, false},
		{"linked to a cluster that has no name", func(r *mesh.Record) {
			r.AllowedLocationIPs = []netip.Prefix{prefix("10.0.0.0/24")}
			r.Linked = []mesh.LinkedNetwork{{Network: prefix("10.0.0.0/24"), Cluster: "far west"}}
		}, false},
		{"invalid prefix", func(r *mesh.Record) { r.AllowedLocationIPs = []netip.Prefix{{}} }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := testRecord(0, 1)
			tt.change(&r)
			if _, err := encodeRecord(r); (err == nil) != tt.ok {
				t.Errorf("got %v, want ok %v", err, tt.ok)
			}
		})
	}
}

func TestRecordLargerThanAPacket(t *testing.T) {
	r := testRecord(0, 1)
	for range mesh.MaxEndpoints {
		r.Endpoints = append(r.Endpoints, mesh.Endpoint{Host: strings.Repeat("a", mesh.MaxHost), Port: 1, Source: mesh.EndpointOwn})
	}
	payload, err := encodeRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signObject(identity(0), "default", kindRecord, payload); !errors.Is(err, errObjectSize) {
		t.Errorf("got %v, want %v", err, errObjectSize)
	}
}

func FuzzDecodeObject(f *testing.F) {
	f.Add(signRecord(f, 0, fullRecord()))
	f.Add(signTombstone(f, 0, mesh.ID{1}, 1))
	f.Add(signVerdict(f, 0, verdict{testVerdict(0, 1, mesh.HealthDown, 3), 4, 5}))
	f.Add(signSettings(f, 0, 1, settingsOf(testCluster())))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if o, err := decodeObject("default", raw); err == nil && !bytes.Equal(o.raw, raw) {
			t.Error("raw bytes changed")
		}
	})
}

// FuzzDecodeRecord feeds the payload, which follows the signature. An accepted payload
// can be encoded again.
func FuzzDecodeRecord(f *testing.F) {
	f.Add(signRecord(f, 0, fullRecord())[objectHeader:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		b, err := decodeRecord(payload)
		if err != nil {
			return
		}
		again, err := encodeRecord(b.(recordBody).Record)
		if err != nil {
			t.Fatalf("encode what was decoded: %v", err)
		}
		c, err := decodeRecord(again)
		if err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}
		if diff := cmp.Diff(b.(recordBody).Record, c.(recordBody).Record, comparePrefixes, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(mesh.Record{})); diff != "" {
			t.Errorf("record (-first +second):\n%s", diff)
		}
	})
}

func FuzzDecodeTombstone(f *testing.F) {
	f.Add(signTombstone(f, 0, mesh.ID{1}, 1)[objectHeader:])
	f.Fuzz(func(_ *testing.T, payload []byte) { _, _ = decodeTombstone(payload) })
}

func FuzzUnpackObjects(f *testing.F) {
	packed, _ := packObjects(nil, [][]byte{[]byte("one"), {}, []byte("three")}, 100)
	f.Add(packed)
	f.Fuzz(func(t *testing.T, b []byte) {
		raws, err := unpackObjects(b)
		if err != nil {
			return
		}
		if again, rest := packObjects(nil, raws, len(b)); len(rest) > 0 || !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

// What a record withholds follows from the records of others, so it gives way if the record
// does not fit a packet.
func TestPublishLongRecord(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := idle(t, &now)
	r := testRecord(0, 1)
	r.Name, r.Location = strings.Repeat("n", mesh.MaxName), strings.Repeat("l", mesh.MaxName)
	r.GossipAddr = strings.Repeat(strings.Repeat("g", mesh.MaxName)+".", 2) + "example.com:7946"
	for i := range mesh.MaxEndpoints {
		r.Endpoints = append(r.Endpoints[:i], mesh.Endpoint{Host: "2001:db8:1111:2222:3333:4444:5555:6666", Port: uint16(50000 + i), Source: mesh.EndpointObserved})
	}
	r.AllowedLocationIPs = slices.Repeat([]netip.Prefix{netip.MustParsePrefix("2001:db8::/64")}, mesh.MaxCIDRs)
	r.Serving = []mesh.NetworkTerm{{Network: r.AllowedLocationIPs[0], Since: 1700000000000}}
	r.Withheld = slices.Repeat([]netip.Prefix{netip.MustParsePrefix("2001:db8::5/128")}, mesh.MaxWithheld)
	if err := g.Publish(r); err != nil {
		t.Fatal(err)
	}
	published := g.View().Records[0]
	if got := len(published.Withheld); got == 0 || got == mesh.MaxWithheld || got+published.WithheldMore != mesh.MaxWithheld {
		t.Errorf("%d withheld networks are published, and %d more, want some of %d, and the rest", got, published.WithheldMore, mesh.MaxWithheld)
	}
}
