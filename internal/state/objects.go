// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/atomicfile"
	"github.com/meshd/meshd/internal/mesh"
)

// Remembered is what a node knows about the mesh. It is kept for a start at which no other
// node answers.
type Remembered struct {
	Objects [][]byte  `cbor:"1,keyasint"` // signed envelopes, unchanged
	Highest []Highest `cbor:"2,keyasint"` // also of deleted objects, to refuse their replay
	Absent  []Absence `cbor:"3,keyasint,omitempty"`
	Clients []Client  `cbor:"4,keyasint,omitempty"`
}

// Client is where a client of this node was last, and whether it was heard no more.
type Client struct {
	Key      wgtypes.Key    `cbor:"1,keyasint"`
	Endpoint netip.AddrPort `cbor:"2,keyasint"`
	Down     bool           `cbor:"3,keyasint,omitempty"`
}

// Absence is how long a node has been absent while this one was running.
type Absence struct {
	ID   mesh.ID       `cbor:"1,keyasint"`
	Time time.Duration `cbor:"2,keyasint"` // nanoseconds
}

// Highest is the highest known sequence of an object.
type Highest struct {
	Key      string `cbor:"1,keyasint"` // identifies the object; any bytes
	Sequence uint64 `cbor:"2,keyasint"`
}

// Objects returns what SaveObjects has written last, or nothing if there is no file. The
// error wraps ErrDamaged or ErrNewer if the content is the cause; the caller may then
// rename the file with SetAside.
func (d *Dir) Objects() (Remembered, error) {
	data, err := os.ReadFile(d.file(ObjectsFile))
	if errors.Is(err, os.ErrNotExist) {
		return Remembered{}, nil
	}
	if err != nil {
		return Remembered{}, fmt.Errorf("read remembered objects: %w", err)
	}
	r, err := decodeObjects(data)
	if errors.Is(err, ErrNewer) {
		return Remembered{}, fmt.Errorf("read remembered objects %s: %w; %s", d.file(ObjectsFile), err, advice(err, "the node asks the join list"))
	}
	if err != nil {
		return Remembered{}, fmt.Errorf("read remembered objects %s: %w", d.file(ObjectsFile), err)
	}
	return r, nil
}

// SaveObjects writes r to disk, so that it survives a crash. After an error the old state
// is still there.
func (d *Dir) SaveObjects(r Remembered) error {
	data, err := encodeObjects(r)
	if err != nil {
		return fmt.Errorf("save remembered objects: %w", err)
	}
	if err := atomicfile.Write(d.file(ObjectsFile), data, fileMode); err != nil {
		return fmt.Errorf("save remembered objects: %w", err)
	}
	return nil
}

// summedFile is the content of objects.cbor, where the payload is an encoded Remembered, and
// of relay.cbor. The checksum detects disk errors, not manipulation.
type summedFile struct {
	Version int    `cbor:"1,keyasint"`
	Sum     []byte `cbor:"2,keyasint"` // SHA-256 of Payload
	Payload []byte `cbor:"3,keyasint"`
}

// maxElements bounds each list, at about a hundred times what a mesh of 500 nodes has.
const maxElements = 1 << 17

func encodeObjects(r Remembered) ([]byte, error) {
	if len(r.Objects) > maxElements || len(r.Highest) > maxElements || len(r.Absent) > maxElements {
		return nil, fmt.Errorf("more than %d objects", maxElements)
	}
	return encodeSummed(r)
}

// encodeSummed encodes what goes into a file with a checksum.
func encodeSummed(payload any) ([]byte, error) {
	options := cbor.CoreDetEncOptions()
	options.String = cbor.StringToByteString // because keys need not be UTF-8
	mode, err := options.EncMode()
	if err != nil {
		return nil, fmt.Errorf("set up CBOR: %w", err)
	}
	encoded, err := mode.Marshal(payload)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	sum := sha256.Sum256(encoded)
	data, err := mode.Marshal(summedFile{Version: version, Sum: sum[:], Payload: encoded})
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return data, nil
}

func decodeObjects(data []byte) (Remembered, error) {
	var r Remembered
	if err := decodeSummed(data, &r); err != nil {
		return Remembered{}, err
	}
	return r, nil
}

// readSummed returns the list that encodeSummed has encoded into a file, or nothing if there is none.
func readSummed[T any](file string) (all []T, err error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := decodeSummed(data, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return all, nil
}

// decodeSummed decodes what encodeSummed has encoded.
func decodeSummed(data []byte, payload any) error {
	lenient, strict, err := decModes()
	if err != nil {
		return fmt.Errorf("set up CBOR: %w", err)
	}
	// Read the version alone first: a newer file may have keys that are unknown here.
	var head struct {
		Version int `cbor:"1,keyasint"`
	}
	if err := lenient.Unmarshal(data, &head); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := checkVersion(head.Version); err != nil {
		return err
	}
	var f summedFile
	if err := strict.Unmarshal(data, &f); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if sum := sha256.Sum256(f.Payload); !bytes.Equal(sum[:], f.Sum) {
		return fmt.Errorf("%w: checksum does not match", ErrDamaged)
	}
	if err := strict.Unmarshal(f.Payload, payload); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// decModes returns two decoding modes; only the lenient one accepts unknown keys.
func decModes() (lenient, strict cbor.DecMode, err error) {
	options := cbor.DecOptions{
		DupMapKey:          cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:    4, // the library's minimum; that of the rows of a relay
		MaxArrayElements:   maxElements,
		MaxMapPairs:        16,
		IndefLength:        cbor.IndefLengthForbidden,
		TagsMd:             cbor.TagsForbidden,
		ByteStringToString: cbor.ByteStringToStringAllowed,
	}
	if lenient, err = options.DecMode(); err != nil {
		return nil, nil, err
	}
	options.ExtraReturnErrors = cbor.ExtraDecErrorUnknownField
	strict, err = options.DecMode()
	return lenient, strict, err
}
