// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/meshd/meshd/internal/atomicfile"
	"github.com/meshd/meshd/internal/mesh"
)

// Remembered is what a node knows of the mesh, kept for the time when it starts
// and nobody answers.
type Remembered struct {
	Objects [][]byte  `cbor:"1,keyasint"` // signed envelopes, as they came
	Highest []Highest `cbor:"2,keyasint"` // also of objects that are gone, against their replay
	Absent  []Absence `cbor:"3,keyasint,omitempty"`
}

// Absence is how long a node has been away, as far as this one was there to see it.
type Absence struct {
	ID   mesh.ID       `cbor:"1,keyasint"`
	Time time.Duration `cbor:"2,keyasint"` // nanoseconds
}

// Highest is the highest sequence that was seen of an object.
type Highest struct {
	Key      string `cbor:"1,keyasint"` // names the object; any bytes
	Sequence uint64 `cbor:"2,keyasint"`
}

// Objects returns what SaveObjects wrote last, or nothing if there was nothing.
// The error wraps ErrDamaged or ErrNewer if it is due to the content; SetAside
// then makes room for a new file.
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
		return Remembered{}, fmt.Errorf("read remembered objects %s: %w; %s", d.file(ObjectsFile), err, wayOut(err, "the node asks the join list"))
	}
	if err != nil {
		return Remembered{}, fmt.Errorf("read remembered objects %s: %w", d.file(ObjectsFile), err)
	}
	return r, nil
}

// SaveObjects makes r what Objects returns, now and after a crash. On an error,
// the old state stays.
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

// objectsFile is the content of objects.cbor. The payload is an encoded
// Remembered. The sum is against bad disks, not against people.
type objectsFile struct {
	Version int    `cbor:"1,keyasint"`
	Sum     []byte `cbor:"2,keyasint"` // SHA-256 of Payload
	Payload []byte `cbor:"3,keyasint"`
}

// maxElements bounds a list: some hundred times what a mesh of 500 nodes has.
const maxElements = 1 << 17

func encodeObjects(r Remembered) ([]byte, error) {
	if len(r.Objects) > maxElements || len(r.Highest) > maxElements || len(r.Absent) > maxElements {
		return nil, fmt.Errorf("more than %d objects", maxElements)
	}
	options := cbor.CoreDetEncOptions()
	options.String = cbor.StringToByteString // keys need not be UTF-8
	mode, err := options.EncMode()
	if err != nil {
		return nil, fmt.Errorf("set up CBOR: %w", err)
	}
	payload, err := mode.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode objects: %w", err)
	}
	sum := sha256.Sum256(payload)
	data, err := mode.Marshal(objectsFile{Version: version, Sum: sum[:], Payload: payload})
	if err != nil {
		return nil, fmt.Errorf("encode objects: %w", err)
	}
	return data, nil
}

func decodeObjects(data []byte) (Remembered, error) {
	lenient, strict, err := decModes()
	if err != nil {
		return Remembered{}, fmt.Errorf("set up CBOR: %w", err)
	}
	// As in decodeJSON: a newer file may have keys that are unknown here.
	var head struct {
		Version int `cbor:"1,keyasint"`
	}
	if err := lenient.Unmarshal(data, &head); err != nil {
		return Remembered{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := checkVersion(head.Version); err != nil {
		return Remembered{}, err
	}
	var f objectsFile
	if err := strict.Unmarshal(data, &f); err != nil {
		return Remembered{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if sum := sha256.Sum256(f.Payload); !bytes.Equal(sum[:], f.Sum) {
		return Remembered{}, fmt.Errorf("%w: checksum does not match", ErrDamaged)
	}
	var r Remembered
	if err := strict.Unmarshal(f.Payload, &r); err != nil {
		return Remembered{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return r, nil
}

// decModes returns decoding modes that differ in whether they take unknown keys.
func decModes() (lenient, strict cbor.DecMode, err error) {
	options := cbor.DecOptions{
		DupMapKey:          cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:    4, // the least that the library takes; Remembered has three
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
