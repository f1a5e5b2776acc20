// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

const (
	maxWord  = 16 // longer than any value of a setting that is a word
	maxSeats = 64 // far above the number of gateways of a location
	unserved = -1 // stands for a network that a node can't serve, where its term would stand
)

// wireRecord is a record's payload. The number of a field is never used again for another
// field.
type wireRecord struct {
	Identity    []byte         `cbor:"1,keyasint"`
	Sequence    uint64         `cbor:"2,keyasint"`
	Instance    uint64         `cbor:"3,keyasint,omitempty"`
	Name        string         `cbor:"4,keyasint"`
	Key         []byte         `cbor:"5,keyasint"`
	Slot        int64          `cbor:"6,keyasint"`
	ClaimTime   int64          `cbor:"7,keyasint,omitempty"`
	Settings    uint64         `cbor:"8,keyasint"`
	Location    string         `cbor:"9,keyasint,omitempty"`
	Gateway     string         `cbor:"10,keyasint,omitempty"`
	MTU         int64          `cbor:"11,keyasint,omitempty"`
	NAT         bool           `cbor:"12,keyasint,omitempty"`
	ListenPort  uint16         `cbor:"13,keyasint,omitempty"`
	GossipPort  uint16         `cbor:"14,keyasint,omitempty"`
	GossipAddr  string         `cbor:"15,keyasint,omitempty"`
	Endpoints   []wireEndpoint `cbor:"16,keyasint,omitempty"`
	InternalIPs []netip.Prefix `cbor:"17,keyasint,omitempty"`
	Allowed     []netip.Prefix `cbor:"18,keyasint,omitempty"`
	ClaimSince  uint64         `cbor:"19,keyasint,omitempty"`
	Seat        int64          `cbor:"20,keyasint,omitempty"`
	TermSince   int64          `cbor:"21,keyasint,omitempty"`
	Replaced    uint64         `cbor:"22,keyasint,omitempty"`
	Encrypted   bool           `cbor:"23,keyasint,omitempty"`
	Confirmed   bool           `cbor:"24,keyasint,omitempty"`
	Withheld    []netip.Prefix `cbor:"25,keyasint,omitempty"`
	More        uint16         `cbor:"26,keyasint,omitempty"` // withheld besides these
	StreamPort  uint16         `cbor:"27,keyasint,omitempty"`
	Etcd        string         `cbor:"28,keyasint,omitempty"`
	Exit4       bool           `cbor:"29,keyasint,omitempty"`
	Exit6       bool           `cbor:"30,keyasint,omitempty"`
	Serving     []int64        `cbor:"31,keyasint,omitempty"` // since when it serves each of Allowed, 0 for not, -1 if it can't
	Linked      []string       `cbor:"32,keyasint,omitempty"` // of which other cluster each of Allowed is a range, "" for none
	Secrets     []byte         `cbor:"33,keyasint,omitempty"` // hashes of those it accepts, the one in use first
}

type wireEndpoint struct {
	_      struct{} `cbor:",toarray"`
	Host   string
	Port   uint16
	Source string
}

func toWire(e mesh.Endpoint) wireEndpoint {
	return wireEndpoint{Host: e.Host, Port: e.Port, Source: string(e.Source)}
}

func (w wireEndpoint) endpoint() mesh.Endpoint {
	return mesh.Endpoint{Host: w.Host, Port: w.Port, Source: mesh.EndpointSource(w.Source)}
}

// recordBody is a record as the content of an object.
type recordBody struct{ mesh.Record }

func (b recordBody) author() ed25519.PublicKey { return b.Identity }
func (b recordBody) subject() mesh.ID          { return b.ID() }
func (b recordBody) sequence() uint64          { return b.Sequence }

func (b recordBody) covered(forgotten map[mesh.ID]uint64) bool {
	return b.Sequence <= forgotten[b.ID()]
}

func encodeRecord(r mesh.Record) ([]byte, error) {
	if err := checkRecord(r); err != nil {
		return nil, err
	}
	w := wireRecord{
		Identity: r.Identity, Sequence: r.Sequence, Instance: r.Instance,
		Name: r.Name, Key: r.Key[:], Slot: int64(r.Claim.Slot), ClaimTime: r.Claim.Time, ClaimSince: r.Claim.Since, Confirmed: r.Claim.Confirmed,
		Settings: r.Settings, Location: r.Location, Gateway: string(r.Gateway),
		Seat: int64(r.Term.Seat), TermSince: r.Term.Since, Replaced: r.Replaced, Encrypted: r.Encrypted,
		MTU: int64(r.MTU), NAT: r.NAT, ListenPort: r.ListenPort,
		GossipPort: r.GossipPort, GossipAddr: r.GossipAddr, StreamPort: r.StreamPort, Etcd: string(r.Etcd), Exit4: r.Exit.IPv4, Exit6: r.Exit.IPv6,
		InternalIPs: r.InternalIPs, Allowed: r.AllowedLocationIPs, Withheld: r.Withheld, More: uint16(min(r.WithheldMore, math.MaxUint16)),
	}
	for _, e := range r.Endpoints {
		w.Endpoints = append(w.Endpoints, toWire(e))
	}
	if len(r.Serving)+len(r.Unserved) > 0 {
		for _, p := range r.AllowedLocationIPs {
			since := r.ServesSince(p)
			if slices.Contains(r.Unserved, p) {
				since = unserved
			}
			w.Serving = append(w.Serving, since)
		}
	}
	if len(r.Linked) > 0 {
		for _, p := range r.AllowedLocationIPs {
			w.Linked = append(w.Linked, r.LinkedTo(p))
		}
	}
	for _, h := range r.Secrets {
		w.Secrets = append(w.Secrets, h[:]...)
	}
	payload, err := encoding.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	return payload, nil
}

func decodeRecord(payload []byte) (body, error) {
	var w wireRecord
	if err := decoding.Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("decode record: %w", err)
	}
	if len(w.Key) != wgtypes.KeyLen {
		return nil, fmt.Errorf("decode record: a WireGuard key of %d bytes", len(w.Key))
	}
	r := mesh.Record{
		Identity: w.Identity, Sequence: w.Sequence, Instance: w.Instance,
		Name: w.Name, Key: wgtypes.Key(w.Key), Settings: w.Settings, Location: w.Location,
		Gateway: mesh.GatewayPreference(w.Gateway), Encrypted: w.Encrypted, NAT: w.NAT, ListenPort: w.ListenPort,
		GossipPort: w.GossipPort, GossipAddr: w.GossipAddr, StreamPort: w.StreamPort, Etcd: mesh.EtcdTimings(w.Etcd), Exit: mesh.ExitFamilies{IPv4: w.Exit4, IPv6: w.Exit6},
		InternalIPs: w.InternalIPs, AllowedLocationIPs: w.Allowed, Withheld: w.Withheld, WithheldMore: int(w.More),
	}
	if w.Slot < mesh.None || w.Slot >= mesh.MaxSlots || w.MTU < 0 || w.MTU > math.MaxUint16 || w.Seat < 0 || w.Seat >= maxSeats {
		return nil, fmt.Errorf("decode record: slot %d, MTU %d, seat %d", w.Slot, w.MTU, w.Seat)
	}
	r.Term, r.Replaced = mesh.GatewayTerm{Seat: int(w.Seat), Since: w.TermSince}, w.Replaced
	r.Claim, r.MTU = mesh.Claim{Slot: int(w.Slot), Confirmed: w.Confirmed, Time: w.ClaimTime, Since: w.ClaimSince}, int(w.MTU)
	for _, e := range w.Endpoints {
		r.Endpoints = append(r.Endpoints, e.endpoint())
	}
	for i, since := range w.Serving {
		if i >= len(w.Allowed) {
			return nil, fmt.Errorf("decode record: terms for %d networks, of which it has %d", len(w.Serving), len(w.Allowed))
		}
		switch since {
		case 0:
		case unserved:
			r.Unserved = append(r.Unserved, w.Allowed[i])
		default:
			r.Serving = append(r.Serving, mesh.NetworkTerm{Network: w.Allowed[i], Since: since})
		}
	}
	for i, cluster := range w.Linked {
		if i >= len(w.Allowed) {
			return nil, fmt.Errorf("decode record: links for %d networks, of which it has %d", len(w.Linked), len(w.Allowed))
		}
		if cluster != "" {
			r.Linked = append(r.Linked, mesh.LinkedNetwork{Network: w.Allowed[i], Cluster: cluster})
		}
	}
	if len(w.Secrets)%len(mesh.SecretHash{}) != 0 {
		return nil, fmt.Errorf("decode record: hashes of secrets of %d bytes", len(w.Secrets))
	}
	for h := range slices.Chunk(w.Secrets, len(mesh.SecretHash{})) {
		r.Secrets = append(r.Secrets, mesh.SecretHash(h))
	}
	if err := checkRecord(r); err != nil {
		return nil, err
	}
	r.Identify()
	return recordBody{r}, nil
}

// checkRecord checks a record, our own or another node's.
func checkRecord(r mesh.Record) error {
	switch {
	case len(r.Identity) != ed25519.PublicKeySize:
		return fmt.Errorf("check record: an identity of %d bytes", len(r.Identity))
	case r.Sequence == 0 || r.Sequence > maxSequence:
		return fmt.Errorf("check record: sequence %d, want 1 to %d", r.Sequence, maxSequence)
	case mesh.CheckName(r.Name) != nil:
		return fmt.Errorf("check record: name: %w", mesh.CheckName(r.Name))
	case r.Key == wgtypes.Key{}:
		return errors.New("check record: no WireGuard key")
	case r.Claim.Slot < mesh.None || r.Claim.Slot >= mesh.MaxSlots || r.Claim.Time < 0 || r.Claim.Since > r.Sequence:
		return fmt.Errorf("check record: slot %d claimed at %d, since sequence %d", r.Claim.Slot, r.Claim.Time, r.Claim.Since)
	case !mesh.ValidText(r.Location, mesh.MaxName):
		return fmt.Errorf("check record: location %q", r.Location)
	case r.Gateway != "" && r.Gateway != mesh.GatewayAuto && r.Gateway != mesh.GatewayPrefer && r.Gateway != mesh.GatewayNever:
		return fmt.Errorf("check record: gateway %q", r.Gateway)
	case !mesh.ValidText(string(r.Etcd), maxWord):
		return fmt.Errorf("check record: etcd %q", r.Etcd)
	case r.Term.Seat < 0 || r.Term.Seat >= maxSeats || r.Term.Since < 0:
		return fmt.Errorf("check record: seat %d since %d", r.Term.Seat, r.Term.Since)
	case len(r.Secrets) > mesh.MaxSecrets:
		return fmt.Errorf("check record: %d secrets, at most %d", len(r.Secrets), mesh.MaxSecrets)
	case r.MTU != 0 && r.MTU < mesh.MinMTU || r.MTU > math.MaxUint16:
		return fmt.Errorf("check record: MTU %d, the lowest is %d", r.MTU, mesh.MinMTU)
	}
	return checkAddresses(r)
}

func checkAddresses(r mesh.Record) error {
	if r.GossipAddr != "" {
		host, port, err := net.SplitHostPort(r.GossipAddr)
		if err != nil || !mesh.ValidHost(host) {
			return fmt.Errorf("check record: gossip address %q", r.GossipAddr)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("check record: gossip address %q", r.GossipAddr)
		}
	}
	if len(r.Endpoints) > mesh.MaxEndpoints || len(r.InternalIPs) > mesh.MaxInternalIPs || len(r.AllowedLocationIPs) > mesh.MaxCIDRs {
		return fmt.Errorf("check record: %d endpoints, %d internal IPs, %d allowed-location-ips; at most %d, %d, %d",
			len(r.Endpoints), len(r.InternalIPs), len(r.AllowedLocationIPs), mesh.MaxEndpoints, mesh.MaxInternalIPs, mesh.MaxCIDRs)
	}
	if len(r.Withheld) > mesh.MaxWithheld || slices.ContainsFunc(r.Withheld, func(p netip.Prefix) bool { return !p.IsValid() }) {
		return fmt.Errorf("check record: withheld networks %v, at most %d", r.Withheld, mesh.MaxWithheld)
	}
	for _, p := range r.Unserved {
		if !slices.Contains(r.AllowedLocationIPs, p) {
			return fmt.Errorf("check record: can't serve %v, allowed-location-ips %v", p, r.AllowedLocationIPs)
		}
	}
	for _, t := range r.Serving {
		if !slices.Contains(r.AllowedLocationIPs, t.Network) || slices.Contains(r.Unserved, t.Network) || t.Since <= 0 {
			return fmt.Errorf("check record: serves %v since %d, allowed-location-ips %v", t.Network, t.Since, r.AllowedLocationIPs)
		}
	}
	for _, l := range r.Linked {
		if !slices.Contains(r.AllowedLocationIPs, l.Network) || mesh.CheckName(l.Cluster) != nil {
			return fmt.Errorf("check record: %v of cluster %q, allowed-location-ips %v", l.Network, l.Cluster, r.AllowedLocationIPs)
		}
	}
	for _, e := range r.Endpoints {
		if err := checkEndpoint(e); err != nil {
			return fmt.Errorf("check record: %w", err)
		}
	}
	for _, p := range r.InternalIPs {
		if err := mesh.CheckInternalIP(p); err != nil {
			return fmt.Errorf("check record: internal IP %v: %w", p, err)
		}
	}
	if err := checkNetworks(r.AllowedLocationIPs); err != nil {
		return fmt.Errorf("check record: allowed-location-ips %w", err)
	}
	return nil
}

func checkEndpoint(e mesh.Endpoint) error {
	if !mesh.ValidHost(e.Host) || e.Port == 0 || !mesh.ValidText(string(e.Source), maxWord) {
		return fmt.Errorf("endpoint %q port %d", e.Host, e.Port)
	}
	return nil
}

func checkNetworks(networks []netip.Prefix) error {
	for _, p := range networks {
		if p != p.Masked() {
			return fmt.Errorf("%v: it has host bits set", p)
		}
		if err := mesh.CheckNetwork(p); err != nil {
			return fmt.Errorf("%v: %w", p, err)
		}
	}
	return nil
}
