// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/meshd/meshd/internal/mesh"
)

// Reasons for which an object is refused.
var (
	errObjectSize      = errors.New("object has an impossible size")
	errObjectVersion   = errors.New("object has an unknown version")
	errObjectKind      = errors.New("object has an unknown kind")
	errObjectSignature = errors.New("object's signature does not hold")
	errObjectContent   = errors.New("object's content is not valid")
)

// objectKind says what an object tells.
type objectKind byte

const (
	kindRecord         objectKind = 1
	kindClient         objectKind = 2
	kindGatewayVerdict objectKind = 3
	kindTombstone      objectKind = 4
	kindRelayVerdict   objectKind = 5
	kindSettings       objectKind = 6
)

// codecs tells for each kind how its payload is read. A node passes on only
// what it can check, so a kind that is not here is refused.
var codecs = map[objectKind]func(payload []byte) (body, error){
	kindRecord:         decodeRecord,
	kindClient:         decodeClient,
	kindGatewayVerdict: decodeVerdict(mesh.RoleGateway),
	kindTombstone:      decodeTombstone,
	kindRelayVerdict:   decodeVerdict(mesh.RoleRelay),
	kindSettings:       decodeTold,
}

// body is a decoded payload.
type body interface {
	// author is who must have signed it.
	author() ed25519.PublicKey
	// subject is the node or the client that it is about; an author has one object of a kind
	// about each subject.
	subject() mesh.ID
	// sequence orders the versions of one object, the highest counts.
	sequence() uint64
	// covered says whether it is forgotten, given up to which of its records
	// each node is.
	covered(buried map[mesh.ID]uint64) bool
}

// objectKey names an object in all its versions.
type objectKey struct {
	kind            objectKind
	author, subject mesh.ID
}

// recordKey is the key of a node's record.
func recordKey(id mesh.ID) objectKey { return objectKey{kindRecord, id, id} }

const objectKeySize = 1 + 2*len(mesh.ID{})

// bytes is the form in which a key is hashed and stored.
func (k objectKey) bytes() []byte {
	return append(append([]byte{byte(k.kind)}, k.author[:]...), k.subject[:]...)
}

func parseObjectKey(s string) (objectKey, error) {
	if len(s) != objectKeySize {
		return objectKey{}, fmt.Errorf("parse the key of an object: %d bytes", len(s))
	}
	k := objectKey{kind: objectKind(s[0])}
	copy(k.author[:], s[1:])
	copy(k.subject[:], s[1+len(mesh.ID{}):])
	return k, nil
}

// hash places a key in the ordered space that synchronisation compares.
func (k objectKey) hash() uint64 {
	sum := sha256.Sum256(k.bytes())
	return binary.BigEndian.Uint64(sum[:])
}

// object is a checked object. Its raw bytes are what is stored and passed on,
// so that fields which a newer version added survive on an older node.
//
//	version and kind 1 | signature 64 | payload
type object struct {
	key   objectKey
	place uint64 // key.hash()
	body  body
	raw   []byte
	sum   [sha256.Size]byte // of raw
}

const (
	objectVersion = 1
	objectHeader  = 1 + ed25519.SignatureSize
)

// signedBytes is what the signature covers. It holds the cluster's name, so
// that an object of one cluster is worthless in another with the same nodes.
func signedBytes(cluster string, kind objectKind, payload []byte) []byte {
	b := append([]byte("meshd object v1\x00"), cluster...)
	return append(append(b, 0, byte(kind)), payload...)
}

// signObject makes the envelope around a payload.
func signObject(key ed25519.PrivateKey, cluster string, kind objectKind, payload []byte) ([]byte, error) {
	raw := append([]byte{objectVersion<<4 | byte(kind)}, ed25519.Sign(key, signedBytes(cluster, kind, payload))...)
	raw = append(raw, payload...)
	if len(raw) > maxObject {
		return nil, fmt.Errorf("%w: %d bytes, at most %d fit a packet", errObjectSize, len(raw), maxObject)
	}
	return raw, nil
}

// decodeObject checks everything about an object that can be checked without
// knowing other objects.
func decodeObject(cluster string, raw []byte) (object, error) {
	o, err := readObject(raw)
	if err != nil {
		return object{}, err
	}
	return o, o.verify(cluster)
}

// readObject does it without the signature, whose check costs more than everything
// else together.
func readObject(raw []byte) (object, error) {
	if _, err := claimedAuthor(raw); err != nil {
		return object{}, err
	}
	kind, payload := objectKind(raw[0]&0x0f), raw[objectHeader:]
	content, err := codecs[kind](payload)
	if err != nil {
		return object{}, fmt.Errorf("%w: %w", errObjectContent, err)
	}
	key := objectKey{kind, mesh.IDOf(content.author()), content.subject()}
	return object{key: key, place: key.hash(), body: content, raw: raw, sum: sha256.Sum256(raw)}, nil
}

// verify checks the signature.
func (o object) verify(cluster string) error {
	signature, payload := o.raw[1:objectHeader], o.raw[objectHeader:]
	if !ed25519.Verify(o.body.author(), signedBytes(cluster, o.key.kind, payload), signature) {
		return fmt.Errorf("%w: it is not of %v", errObjectSignature, o.key.author)
	}
	return nil
}

// identityField is how every payload begins, after the byte that says how many
// fields it has: in the one way in which we encode, the field with the lowest
// number comes first, and its value is a key of 32 bytes.
var identityField = []byte{0x01, 0x58, ed25519.PublicKeySize}

// claimedAuthor returns who is said to have signed an object. It decodes nothing,
// so that whose word does not count costs no more than this.
func claimedAuthor(raw []byte) (mesh.ID, error) {
	if len(raw) <= objectHeader || len(raw) > maxObject {
		return mesh.ID{}, fmt.Errorf("%w: %d bytes", errObjectSize, len(raw))
	}
	if raw[0]>>4 != objectVersion {
		return mesh.ID{}, fmt.Errorf("%w: %d", errObjectVersion, raw[0]>>4)
	}
	if kind := objectKind(raw[0] & 0x0f); codecs[kind] == nil {
		return mesh.ID{}, fmt.Errorf("%w: %d", errObjectKind, kind)
	}
	const fewFields, manyFields = 0xa0, 0xb8 // up to 23 in the byte itself, or in the next one (RFC 8949, section 3)
	payload := raw[objectHeader:]
	fields := 1
	if payload[0] == manyFields {
		fields = 2
	}
	if fields == 1 && payload[0]&^0x1f != fewFields || len(payload) < fields {
		return mesh.ID{}, fmt.Errorf("%w: it is no list of fields", errObjectContent)
	}
	key, ok := bytes.CutPrefix(payload[fields:], identityField)
	if !ok || len(key) < ed25519.PublicKeySize {
		return mesh.ID{}, fmt.Errorf("%w: it does not begin with its author", errObjectContent)
	}
	return mesh.IDOf(ed25519.PublicKey(key[:ed25519.PublicKeySize])), nil
}

// packObjects appends as many objects to b as fit into limit bytes, each after
// its length, and returns the rest.
func packObjects(b []byte, raws [][]byte, limit int) (packed []byte, rest [][]byte) {
	for i, raw := range raws {
		if len(b)+2+len(raw) > limit {
			return b, raws[i:]
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(raw))), raw...)
	}
	return b, nil
}

// unpackObjects is the reverse of packObjects. The objects share b's memory.
func unpackObjects(b []byte) ([][]byte, error) {
	var raws [][]byte
	for len(b) > 0 {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return raws, fmt.Errorf("unpack objects: %w", errShort)
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		raws = append(raws, b[2:n:n])
		b = b[n:]
	}
	return raws, nil
}

// The one way in which payloads and hellos are encoded (RFC 8949, section
// 4.2.1), and the strict one in which they are read. Unknown fields are
// ignored: a newer node may have added them.
var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  6,
		MaxArrayElements: 64,
		MaxMapPairs:      64,
	}.DecMode())
)

// must is for options that are constants of this file.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
