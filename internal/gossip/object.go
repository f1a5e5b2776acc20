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

// Reasons why an object is refused.
var (
	errObjectSize      = errors.New("object has an invalid size")
	errObjectVersion   = errors.New("object has an unknown version")
	errObjectKind      = errors.New("object has an unknown kind")
	errObjectSignature = errors.New("object's signature is invalid")
	errObjectContent   = errors.New("object's content is not valid")
)

// objectKind is the kind of an object's content.
type objectKind byte

const (
	kindRecord     objectKind = 1
	kindClient     objectKind = 2
	kindVerdict    objectKind = 3
	kindTombstone  objectKind = 4
	kindSettings   objectKind = 6
	kindPath       objectKind = 7
	kindMembership objectKind = 8
	kindReach      objectKind = 9
)

// codecs holds the decoder of each kind. A node forwards only what it can check, so an
// unknown kind is refused.
var codecs = map[objectKind]func(payload []byte) (body, error){
	kindRecord:     decodeRecord,
	kindClient:     decodeClient,
	kindVerdict:    decodeVerdict,
	kindTombstone:  decodeTombstone,
	kindSettings:   decodeSettings,
	kindPath:       decodePath,
	kindMembership: decodeMembership,
	kindReach:      decodeReach,
}

// body is a decoded payload.
type body interface {
	// author is the key that must have signed it.
	author() ed25519.PublicKey
	// subject is the node or the client that it is about; an author has one object of
	// each kind about each subject.
	subject() mesh.ID
	// sequence orders the versions of one object; the highest one counts.
	sequence() uint64
	// covered reports whether it is forgotten, given the sequence up to which each node
	// is forgotten.
	covered(forgotten map[mesh.ID]uint64) bool
}

// objectKey identifies an object in all its versions.
type objectKey struct {
	kind            objectKind
	author, subject mesh.ID
}

// recordKey returns the key of a node's record.
func recordKey(id mesh.ID) objectKey { return objectKey{kindRecord, id, id} }

const objectKeySize = 1 + 2*len(mesh.ID{})

// bytes returns the form in which a key is hashed and stored.
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

// hash returns the position of a key in the ordered space that synchronisation compares.
func (k objectKey) hash() uint64 {
	sum := sha256.Sum256(k.bytes())
	return binary.BigEndian.Uint64(sum[:])
}

// object is a checked object. Its raw bytes are stored and forwarded, so that fields
// which a newer version added survive on an older node.
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

// signedBytes returns what the signature covers. This includes the cluster's name, so
// that an object of one cluster is invalid in another with the same nodes.
func signedBytes(cluster string, kind objectKind, payload []byte) []byte {
	b := append([]byte("meshd object v1\x00"), cluster...)
	return append(append(b, 0, byte(kind)), payload...)
}

// signObject returns a payload in its signed envelope.
func signObject(key ed25519.PrivateKey, cluster string, kind objectKind, payload []byte) ([]byte, error) {
	raw := append([]byte{objectVersion<<4 | byte(kind)}, ed25519.Sign(key, signedBytes(cluster, kind, payload))...)
	raw = append(raw, payload...)
	if len(raw) > maxObject {
		return nil, fmt.Errorf("%w: %d bytes, at most %d fit a packet", errObjectSize, len(raw), maxObject)
	}
	return raw, nil
}

// decodeObject checks everything about an object that can be checked without knowing
// other objects.
func decodeObject(cluster string, raw []byte) (object, error) {
	o, err := readObject(raw)
	if err != nil {
		return object{}, err
	}
	return o, o.verify(cluster)
}

// readObject does the same without the signature, whose check costs more than all others
// together.
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
		return fmt.Errorf("%w: it was not made by %v", errObjectSignature, o.key.author)
	}
	return nil
}

// identityField is the beginning of every payload, after the head that gives the number
// of fields: in our deterministic encoding the field with the lowest number comes first,
// and its value is a key of 32 bytes.
var identityField = []byte{0x01, 0x58, ed25519.PublicKeySize}

// claimedAuthor returns the author that an object claims. It decodes nothing else, so
// that an object of an untrusted author costs no more than this.
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
		return mesh.ID{}, fmt.Errorf("%w: it is not a list of fields", errObjectContent)
	}
	key, ok := bytes.CutPrefix(payload[fields:], identityField)
	if !ok || len(key) < ed25519.PublicKeySize {
		return mesh.ID{}, fmt.Errorf("%w: it does not begin with its author", errObjectContent)
	}
	return mesh.IDOf(ed25519.PublicKey(key[:ed25519.PublicKeySize])), nil
}

// packObjects appends as many objects to b as fit into limit bytes, each after its
// length, and returns the others.
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

// The deterministic encoding of payloads and hellos (RFC 8949, section 4.2.1), and its
// strict decoding. Unknown fields are ignored, because a newer node may have added them.
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

// must panics on an error. It is for options that are constants of this file.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
